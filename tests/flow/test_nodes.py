"""Nodes come and go: SIGKILL to a node that trains, with a replacement and without; nodes on a network, a cable out."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.config import RunConfig, TrackingConfig
from tests.flow import network
from tests.flow.launcher import Local
from tests.flow.training_runs import final_weights, same, small_run

pytestmark = [pytest.mark.flow, pytest.mark.timeout(1800)]
REPO = Path(__file__).parents[2]


@pytest.fixture
def config(shards: str, bank: str, empty_store: Path, tmp_path: Path) -> RunConfig:
    """Two workers of 1.5 CPUs: on nodes of two CPUs one a node, with room for its data tasks."""
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")
    run = small_run(shards, bank, str(tmp_path / "runs"), cpus_per_worker=1.5)
    return run.model_copy(update={"tracking": TrackingConfig(model_name=None)})


def weights(config: RunConfig) -> dict[str, torch.Tensor]:
    """What the run ended with."""
    return load_file(Path(config.output, config.name, "model", "weights.safetensors"))


def stages(config: RunConfig) -> list[tuple[int, int]]:
    """(workers, samples that each of them took) of the finished run."""
    folder = Path(config.output, config.name, "checkpoints", f"step-{config.train.steps:08d}")
    state = json.loads((folder / "state.json").read_text())
    return [(stage["workers"], stage["consumed"]) for stage in state["stages"]]


def recorded(config: RunConfig, uri: str) -> list[int]:
    """The steps of the loss in the one tracking run of this name, which ended well."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, filter_string=f"attributes.run_name = '{config.name}'")
    assert [r.info.status for r in runs] == ["FINISHED"]
    return [point.step for point in client.get_metric_history(runs[0].info.run_id, "loss")]


def every_second(config: RunConfig) -> list[int]:
    """The steps that are recorded."""
    return list(range(2, config.train.steps + 1, 2))


def named(config: RunConfig, name: str, **train: int) -> tuple[RunConfig, Path]:
    """The same run under another name, and its config file."""
    changed = config.model_copy(update={"name": name, "train": config.train.model_copy(update=train)})
    file = Path(config.output, f"{name}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(changed.model_dump(mode="json")))
    return changed, file


def wait_for(condition: Callable[[], object], what: str, *, patience_s: float = 600) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def newest(config: RunConfig) -> int:
    """The step of the newest committed checkpoint."""
    snapshot = Path(config.output, config.name, "checkpoints", "checkpoint_manager_snapshot.json")
    try:
        return max(map(int, re.findall(r"step-(\d+)", snapshot.read_text())), default=0)
    except FileNotFoundError:
        return 0


def nodes_with(local: Local, title: str) -> set[int]:
    """The numbers of the cluster's nodes that run a process of this title."""
    found = set()
    for process in psutil.process_iter():
        try:
            mark = process.environ().get("BLINDSR_LOCAL_CLUSTER", "")
            if mark.startswith(f"{local.folder}#node-") and title in " ".join(process.cmdline()):
                found.add(int(mark.rpartition("-")[2]))
        except psutil.Error:
            continue
    return found


def lose_a_node(local: Local, run: RunConfig, file: Path, node: int) -> subprocess.Popen:
    """Start a run and kill a node that holds one of its workers once there is a checkpoint."""
    job = subprocess.Popen([sys.executable, "jobs/train.py", "--config", file], cwd=REPO, env=local.environment)
    wait_for(lambda: newest(run) >= run.train.checkpoint_every or job.poll() is not None, "no checkpoint")
    assert job.poll() is None
    assert node in nodes_with(local, "RayTrainWorker")
    assert nodes_with(local, "ray::DriverChannel") == {0}  # on another node it would be lost, and the run with it
    assert local("kill-node", str(node)).returncode == 0
    return job


def test_a_lost_node_changes_nothing_and_fewer_workers_keep_the_batch(
    local: Local, config: RunConfig, undisturbed: Path
):
    assert local.up(cpus=2).returncode == 0
    local.use()
    tracking = local.environment["MLFLOW_TRACKING_URI"]

    replaced, file = named(config, "replaced")
    job = lose_a_node(local, replaced, file, 1)
    assert local("add-node").returncode == 0
    assert job.wait(timeout=600) == 0
    assert recorded(replaced, tracking) == every_second(replaced)
    assert stages(replaced) == [(2, replaced.train.steps * replaced.train.batch_size // 2)]
    assert same(weights(replaced), final_weights(undisturbed))

    fewer, file = named(config, "fewer", min_workers=1)
    job = lose_a_node(local, fewer, file, 2)
    assert job.wait(timeout=600) == 0
    assert recorded(fewer, tracking) == every_second(fewer)
    (before, taken), (after, rest) = stages(fewer)
    assert (before, after) == (2, 1)
    assert 2 * taken + rest == fewer.train.steps * fewer.train.batch_size


class Cluster:
    """Ray on machines of their own: the first is the head and takes no work."""

    def __init__(self, machines: list[network.Machine], folder: Path) -> None:
        self.machines, self.folder = machines, folder
        self.dashboard = f"http://{machines[0].address}:8265"
        self.token = secrets.token_hex(32)
        (folder / "token").write_text(self.token)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_", "MLFLOW_"))} | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_worker_niceness": "0",
            # A node without an answer for some 15 s is dead, after a minute by default.
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_timeout_ms": "3000",
            "RAY_health_check_failure_threshold": "4",
        }

    def start(self, number: int) -> None:
        """`ray start` on a machine."""
        machine, head = self.machines[number], self.machines[0].address
        role = [f"--address={head}:6379", "--num-cpus=2"]
        if number == 0:
            role = ["--head", "--port=6379", "--num-cpus=0", f"--dashboard-host={head}", "--dashboard-port=8265"]
        places = [f"--node-ip-address={machine.address}", f"--temp-dir={self.folder / str(number)}"]
        command = ["ray", "start", *role, *places, "--object-store-memory=104857600", "--disable-usage-stats"]
        done = subprocess.run(
            machine.command(*command),
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def ask(self, path: str) -> dict:
        """An answer of the dashboard."""
        request = urllib.request.Request(self.dashboard + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return dict(json.load(answer))

    def alive(self) -> list[str]:
        """Addresses of the nodes that Ray believes alive."""
        nodes = self.ask("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        return sorted(node["node_ip"] for node in nodes if node["state"] == "ALIVE")


@pytest.fixture
def cluster_on_a_network() -> Iterator[Cluster]:
    """A head and two nodes; no process, namespace or bridge is left."""
    if not network.allowed():
        pytest.skip("network namespaces need root and iproute2")
    folder = Path(tempfile.mkdtemp(prefix="bsn-", dir="/tmp"))  # sockets' paths must be short
    with network.machines(3) as machines:
        made = Cluster(machines, folder)
        for number in range(3):
            made.start(number)
        yield made
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert not any(machine.name in left for machine in machines)
    shutil.rmtree(folder, ignore_errors=True)


def test_training_across_machines_outlives_a_cable_that_was_out(
    cluster_on_a_network: Cluster, config: RunConfig, undisturbed: Path
):
    cluster, (_, stays, leaves) = cluster_on_a_network, cluster_on_a_network.machines
    run, file = named(config, "network")
    submit = ["ray", "job", "submit", "--address", cluster.dashboard, "--submission-id", "network", "--no-wait"]
    subprocess.run(
        [*submit, "--working-dir", ".", "--", "python", "jobs/train.py", "--config", file],
        cwd=REPO,
        env=cluster.environment,
        check=True,
        capture_output=True,
    )
    wait_for(lambda: newest(run) >= run.train.checkpoint_every or job_status(cluster) == "FAILED", "no checkpoint")
    assert job_status(cluster) == "RUNNING", cluster.ask("/api/jobs/network/logs")["logs"]
    assert stays.runs("RayTrainWorker")
    assert leaves.runs("RayTrainWorker")

    network.ip("link", "set", leaves.cable, "down")
    wait_for(lambda: leaves.address not in cluster.alive(), "the node is still believed alive")
    network.ip("link", "set", leaves.cable, "up")
    # Its Ray learns that it was given up, and ends; whatever watches over it starts it again.
    wait_for(lambda: not leaves.runs("raylet/raylet"), "the lost node goes on")
    leaves.end()
    cluster.start(2)

    wait_for(lambda: job_status(cluster) != "RUNNING", "the run does not end")
    assert job_status(cluster) == "SUCCEEDED", cluster.ask("/api/jobs/network/logs")["logs"]
    assert recorded(run, f"sqlite:///{run.output}/mlflow.db") == every_second(run)
    assert stages(run) == [(2, run.train.steps * run.train.batch_size // 2)]
    assert same(weights(run), final_weights(undisturbed))


def job_status(cluster: Cluster) -> str:
    return str(cluster.ask("/api/jobs/network")["status"])
