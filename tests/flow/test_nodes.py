"""Nodes on a network, and a temporary network failure."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from tests.flow import network
from tests.flow.node_runs import every_second, named, newest, recorded, run_on_nodes, stages, wait_for, weights
from tests.flow.training_runs import final_weights, same

pytestmark = [pytest.mark.flow, pytest.mark.timeout(1800)]
REPO = Path(__file__).parents[2]


@pytest.fixture
def config(shards: str, bank: str, empty_store: Path, tmp_path: Path) -> RunConfig:
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")
    return run_on_nodes(shards, bank, str(tmp_path / "runs"))


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
            "RAY_USAGE_STATS_ENABLED": "0",
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
        command = ["ray", "start", *role, *places, "--object-store-memory=104857600"]
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
