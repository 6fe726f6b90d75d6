"""A whole cluster of processes: up, a job, the doctor, a node and the S3 server lost and back, down to nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flow.conftest import free_port

pytestmark = [pytest.mark.flow, pytest.mark.timeout(900)]
REPO = Path(__file__).parents[2]
NAMES = ("ray", "dashboard", "mlflow", "s3")


class Local:
    """The launcher as a user calls it, each time from another process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in NAMES}
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_", "MLFLOW_"))}

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        script = [sys.executable, "infra/local_cluster.py", "--folder", str(self.folder)]
        return self.run([*script, *arguments])

    def up(self) -> subprocess.CompletedProcess[str]:
        ports = [f"--{name}-port={port}" for name, port in self.ports.items()]
        return self("up", "--nodes", "3", "--cpus", "1", "--store-mib", "100", *ports)

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=REPO, env=self.environment, capture_output=True, text=True, timeout=600)

    def use(self) -> None:
        lines = self("env").stdout.splitlines()
        self.environment |= dict(line.removeprefix("export ").split("=", 1) for line in lines if "=" in line)

    def marked(self) -> set[int]:
        """Processes that carry the cluster's mark, found without the launcher's help."""
        found = set()
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"BLINDSR_LOCAL_CLUSTER={self.folder}#".encode() in environ.read_bytes():
                    found.add(int(environ.parent.name))
            except OSError:
                continue
        return found


@pytest.fixture
def local() -> Iterator[Local]:
    folder = Path(tempfile.mkdtemp(prefix="bsr-", dir="/tmp"))  # sockets' paths must be short
    made = Local(folder)
    yield made
    made("down")
    assert not made.marked()
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_name(folder.name + "-failed.log").unlink(missing_ok=True)


def test_a_cluster_from_up_to_down(local: Local):
    up = local.up()
    assert up.returncode == 0, up.stderr
    assert "--working-dir . -- python jobs/" in up.stderr
    assert oct((local.folder / "token").stat().st_mode)[-3:] == "600"

    again = local.up()
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "is up: take it down" in again.stderr
    other = Local(local.folder.with_name(local.folder.name + "-b"))
    other.ports = local.ports
    busy = other.up()
    assert (busy.returncode, busy.stderr.count("\n")) == (2, 1)
    assert all(f"{port} (--{name}-port)" in busy.stderr for name, port in local.ports.items())
    assert not other.folder.exists()

    local.use()
    submit = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--working-dir", ".", "--", "python"]
    bank = "s3://blindsr/bank"
    job = local.run([*submit, "jobs/build_kernel_bank.py", "--output", bank, "--gaussian", "40", "--motion", "40"])
    assert job.returncode == 0, job.stdout
    digest = re.search(r"digest +(\w{64})", job.stdout)
    assert digest

    assert local("kill-node", "0").returncode == 2
    assert local("kill-node", "2").returncode == 0
    assert local("add-node").returncode == 0
    wait_for_nodes(local, "0, 1, 3")
    assert local("kill", "s3").returncode == 0
    assert local("restart", "s3").returncode == 0

    # The bank outlived its server, and the doctor sees all of the cluster, with the new node.
    doctor = [sys.executable, "jobs/doctor.py", "--json", "--output", "s3://blindsr/runs", "--data.bank", bank]
    found = local.run([*doctor, "--train.gpu"])
    assert found.returncode == 1, found.stderr
    report = json.loads(found.stdout)
    bad = {(f["check"], f["status"]) for f in report["findings"] if f["status"] == "fail"}
    assert bad == {("GPUs", "fail")}
    text = {f["check"]: f["found"] for f in report["findings"]}
    assert "3 nodes" in text["Ray"]
    assert text["bank"] == "80 kernels; seen by 3 nodes"
    assert "files come back" in text["MLflow"]
    kept = local.run([sys.executable, "jobs/build_kernel_bank.py", "--output", bank, "--info"])
    assert digest[1] in kept.stdout
    verified = local.run([sys.executable, "jobs/build_kernel_bank.py", "--output", bank, "--verify"])
    assert verified.returncode == 0, verified.stderr

    assert local.marked()
    down = local("down")
    assert down.returncode == 0, down.stderr
    assert not local.marked()
    assert not local.folder.exists()


def wait_for_nodes(local: Local, numbers: str) -> None:
    deadline = time.monotonic() + 120
    while f"believes alive: {numbers}\n" not in (seen := local("status").stderr):
        assert time.monotonic() < deadline, seen
        time.sleep(1)
