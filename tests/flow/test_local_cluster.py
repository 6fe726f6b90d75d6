"""A whole cluster of processes: up, jobs, the doctor, nodes and the S3 server lost and back, down to nothing."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from tests.flow.launcher import Local
from tests.flow.node_runs import every_second, lose_a_node, named, recorded, run_on_nodes, stages, weights
from tests.flow.training_runs import final_weights, same

pytestmark = [pytest.mark.flow, pytest.mark.timeout(1800)]


def test_a_cluster_from_up_to_down(local: Local, request: pytest.FixtureRequest, tmp_path: Path):
    up = local.up(cpus=2)
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
    for wrong, text in (
        (f"http://127.0.0.1:{local.ports['dashboard']}", "this is the dashboard's address"),
        (f"127.0.0.1:{local.ports['dashboard']}", "not the head of a Ray cluster"),
        (f"127.0.0.1:{local.ports['mlflow']}", "not the head of a Ray cluster"),
    ):
        refused = Local(local.folder)
        refused.environment = local.environment | {"RAY_ADDRESS": wrong}
        said = refused.run([sys.executable, "jobs/build_kernel_bank.py", "--output", str(local.folder / "bank")])
        assert (said.returncode, said.stderr.count("\n")) == (2, 1), said.stderr
        assert text in said.stderr
    refused.environment = local.environment | {"RAY_AUTH_TOKEN_PATH": "/dev/null"}
    said = refused.run([sys.executable, "jobs/build_kernel_bank.py", "--output", str(local.folder / "bank")])
    assert (said.returncode, said.stderr.count("\n")) == (2, 1), said.stderr
    assert "the cluster asks for its token" in said.stderr

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

    # Late, because another process makes them meanwhile.
    shards, bank, undisturbed = (request.getfixturevalue(name) for name in ("shards", "bank", "undisturbed"))
    lost_nodes_change_nothing_and_fewer_workers_keep_the_batch(
        local, run_on_nodes(shards, bank, str(tmp_path / "runs")), undisturbed
    )

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


def lost_nodes_change_nothing_and_fewer_workers_keep_the_batch(
    local: Local, config: RunConfig, undisturbed: Path
) -> None:
    """SIGKILL to a node that trains, with a replacement and without."""
    tracking = local.environment["MLFLOW_TRACKING_URI"]

    replaced, file = named(config, "replaced")
    job = lose_a_node(local, replaced, file, 1)
    assert local("add-node").returncode == 0
    assert job.wait(timeout=600) == 0
    assert recorded(replaced, tracking) == every_second(replaced)
    assert stages(replaced) == [(2, replaced.train.steps * replaced.train.batch_size // 2)]
    assert same(weights(replaced), final_weights(undisturbed))

    fewer, file = named(config, "fewer", min_workers=1)
    job = lose_a_node(local, fewer, file, 3)
    assert job.wait(timeout=600) == 0
    assert recorded(fewer, tracking) == every_second(fewer)
    (before, taken), (after, rest) = stages(fewer)
    assert (before, after) == (2, 1)
    assert 2 * taken + rest == fewer.train.steps * fewer.train.batch_size
