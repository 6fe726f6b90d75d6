"""The parts of a local cluster: how each is started, what a shell needs to use it, and whether it answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from processes import MARK

HOST, BUCKET = "127.0.0.1", "blindsr"


class ClusterError(Exception):
    """Report what is wrong and what to do, in one line."""


@dataclass(frozen=True)
class Settings:
    """Hold what `up` was asked for; kept in the folder for the commands after it."""

    cpus: int  # of each worker node
    store_mib: int  # shared memory of each node for objects
    ray_port: int
    dashboard_port: int
    mlflow_port: int
    s3_port: int
    backend: str  # database of MLflow


def read_settings(folder: Path) -> Settings:
    """Read what `up` kept. Raises ClusterError when no cluster was made there."""
    try:
        return Settings(**json.loads((folder / "settings.json").read_text()))
    except (FileNotFoundError, NotADirectoryError):
        raise ClusterError(f"no cluster in {folder}; start one with `up`") from None
    except (ValueError, TypeError):
        raise ClusterError(f"{folder / 'settings.json'} is damaged or not a cluster's; give another --folder") from None


def start_s3(folder: Path, settings: Settings) -> subprocess.Popen[bytes]:
    """Start S3 of moto, with its objects in the folder."""
    server = [sys.executable, str(Path(__file__).with_name("s3_server.py"))]
    server += ["--port", str(settings.s3_port), "--folder", str(folder / "s3"), "--bucket", BUCKET]
    return launch(folder, "s3", server)


def start_mlflow(folder: Path, settings: Settings) -> subprocess.Popen[bytes]:
    """Start `mlflow server` that hands artifacts through to S3, so that its clients need no S3 credentials."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(settings.mlflow_port)]
    command += ["--artifacts-destination", f"s3://{BUCKET}/mlflow", "--workers", "1"]
    # In the environment, not among the arguments, which every user of the machine can read: it may hold a password.
    return launch(folder, "mlflow", command, {"MLFLOW_BACKEND_STORE_URI": settings.backend})


def start_node(folder: Path, settings: Settings, number: int) -> subprocess.Popen[bytes]:
    """Start a node; 0 is the head. It takes no work; jobs' drivers run there.

    Not with `--block`: that ends a head on a busy machine for the sake of Ray's client server, which nobody needs.
    """
    command = [str(Path(sys.executable).with_name("ray")), "start", f"--node-ip-address={HOST}"]
    command += ["--min-worker-port=0", "--max-worker-port=0"]  # any free one, not one of ours
    command += [f"--object-store-memory={settings.store_mib * 2**20}"]
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}"]
    if number == 0:
        command += ["--head", f"--port={settings.ray_port}", "--num-cpus=0"]
        command += [f"--dashboard-host={HOST}", f"--dashboard-port={settings.dashboard_port}"]
        command += [f"--ray-client-server-port={free_port()}"]
    else:
        command += [f"--address={HOST}:{settings.ray_port}", f"--num-cpus={settings.cpus}"]
    # A disk of its own, as on another machine: in one folder the nodes unpack a job's code over each other.
    command += [f"--temp-dir={folder / str(number)}"]
    command += [f"--resources={json.dumps({f'node-{number}': 1})}"]
    return launch(folder, f"node-{number}", command)


def launch(folder: Path, role: str, command: list[str], more: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one, with its output in the folder.

    Args:
        folder: of the cluster.
        role: of the process.
        command: program and arguments.
        more: environment variables.
    """
    settings = read_settings(folder)
    environment = {k: v for k, v in os.environ.items() if k not in ("AWS_CA_BUNDLE", "RAY_ADDRESS", "AWS_PROFILE")}
    environment |= variables(folder, settings) | {
        # Jobs say `python jobs/train.py`: the python of this environment.
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_USAGE_STATS_ENABLED": "0",  # on every node; `ray start --disable-usage-stats` is heard by the head only
        "SPT_NOENV": "1",  # Ray's processes change their titles, and would write over the mark
        # Ray would give its workers the lowest priority; beside other programs they then take minutes to start.
        "RAY_worker_niceness": "0",
        # How long `ray job stop` waits between SIGTERM and SIGKILL: a training writes its checkpoint in between.
        "RAY_JOB_STOP_WAIT_TIME_S": "120",
        MARK: f"{folder}#{role}",
    }
    del environment["RAY_ADDRESS"]  # jobs get it from Ray
    with (folder / f"{role}.log").open("ab") as log:
        return subprocess.Popen(
            command,
            env=environment | (more or {}),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def variables(folder: Path, settings: Settings) -> dict[str, str]:
    """Return what a shell needs to use the cluster."""
    return {
        "RAY_ADDRESS": f"{HOST}:{settings.ray_port}",
        "RAY_API_SERVER_ADDRESS": f"http://{HOST}:{settings.dashboard_port}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "MLFLOW_TRACKING_URI": f"http://{HOST}:{settings.mlflow_port}",
        "AWS_ENDPOINT_URL": f"http://{HOST}:{settings.s3_port}",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local-test-server",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def alive_nodes(folder: Path, settings: Settings) -> list[int]:
    """List the numbers of the nodes that Ray believes alive; none while its dashboard does not answer."""
    request = urllib.request.Request(f"http://{HOST}:{settings.dashboard_port}/api/v0/nodes?detail=1")
    try:
        request.add_header("Authorization", f"Bearer {(folder / 'token').read_text()}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            found = json.load(answer)["data"]["result"]["result"]
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return []
    names = [name for node in found if node["state"] == "ALIVE" for name in node["resources_total"]]
    return sorted(int(name.removeprefix("node-")) for name in names if name.startswith("node-"))


def listens(port: int) -> bool:
    """Check whether something accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def answers(port: int, path: str) -> bool:
    """Check whether an HTTP server says 200."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=10) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):
        return False


def free_port() -> int:
    """Find a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
