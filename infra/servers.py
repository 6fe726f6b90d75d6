"""The servers of a local cluster: their start, their variables for a shell, and their health checks."""

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
    """Report in one line what is wrong and what to do."""


@dataclass(frozen=True)
class Settings:
    """Hold the settings of `up`, which are kept in the folder for later commands."""

    cpus: int  # CPUs of each worker node
    store_mib: int  # shared memory of each node for objects
    ray_port: int
    dashboard_port: int
    mlflow_port: int
    s3_port: int
    backend: str  # database of MLflow


def read_settings(folder: Path) -> Settings:
    """Read the settings kept by `up`. Raises ClusterError if no cluster was started there."""
    try:
        return Settings(**json.loads((folder / "settings.json").read_text()))
    except (FileNotFoundError, NotADirectoryError):
        raise ClusterError(f"no cluster in {folder}; start one with `up`") from None
    except (ValueError, TypeError):
        raise ClusterError(f"{folder / 'settings.json'} is damaged or not a cluster's; give another --folder") from None


def start_s3(folder: Path, settings: Settings) -> subprocess.Popen[bytes]:
    """Start moto's S3 server, with its objects in the folder."""
    server = [sys.executable, str(Path(__file__).with_name("s3_server.py"))]
    server += ["--port", str(settings.s3_port), "--folder", str(folder / "s3"), "--bucket", BUCKET]
    return launch(folder, "s3", server)


def start_mlflow(folder: Path, settings: Settings) -> subprocess.Popen[bytes]:
    """Start `mlflow server` as a proxy of artifacts on S3, so that its clients need no S3 credentials."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(settings.mlflow_port)]
    command += ["--artifacts-destination", f"s3://{BUCKET}/mlflow", "--workers", "1"]
    # In the environment, since it may hold a password and every user of the machine can read arguments.
    return launch(folder, "mlflow", command, {"MLFLOW_BACKEND_STORE_URI": settings.backend})


def start_node(folder: Path, settings: Settings, number: int) -> subprocess.Popen[bytes]:
    """Start a node; 0 is the head, which takes no work except jobs' drivers.

    `--block` is not used: on a busy machine it ends the head because of Ray's client server, which is not needed.
    """
    command = [str(Path(sys.executable).with_name("ray")), "start", f"--node-ip-address={HOST}"]
    command += ["--min-worker-port=0", "--max-worker-port=0"]  # any free port, not one of ours
    command += [f"--object-store-memory={settings.store_mib * 2**20}"]
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}"]
    if number == 0:
        command += ["--head", f"--port={settings.ray_port}", "--num-cpus=0"]
        command += [f"--dashboard-host={HOST}", f"--dashboard-port={settings.dashboard_port}"]
        command += [f"--ray-client-server-port={free_port()}"]
    else:
        command += [f"--address={HOST}:{settings.ray_port}", f"--num-cpus={settings.cpus}"]
    # Each node has its own folder, as on another machine: in a common one, nodes would overwrite a job's unpacked code.
    command += [f"--temp-dir={folder / str(number)}"]
    command += [f"--resources={json.dumps({f'node-{number}': 1})}"]
    return launch(folder, f"node-{number}", command)


def launch(folder: Path, role: str, command: list[str], more: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one, with its output in the folder.

    Args:
        folder: folder of the cluster.
        role: role of the process.
        command: program and arguments.
        more: environment variables.
    """
    settings = read_settings(folder)
    environment = {k: v for k, v in os.environ.items() if k not in ("AWS_CA_BUNDLE", "RAY_ADDRESS", "AWS_PROFILE")}
    environment |= variables(folder, settings) | {
        # Jobs run `python jobs/train.py`, with the python of this environment.
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_USAGE_STATS_ENABLED": "0",  # for every node; `ray start --disable-usage-stats` only affects the head
        "SPT_NOENV": "1",  # Ray's processes change their titles, which would overwrite the mark
        # Ray would give its workers the lowest priority, and next to other programs they would take minutes to start.
        "RAY_worker_niceness": "0",
        # Seconds between SIGTERM and SIGKILL of `ray job stop`, in which a training writes its checkpoint.
        "RAY_JOB_STOP_WAIT_TIME_S": "120",
        MARK: f"{folder}#{role}",
    }
    del environment["RAY_ADDRESS"]  # Ray sets it for jobs
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
    """Return the variables that a shell needs to use the cluster."""
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
    """List the numbers of the nodes that are alive according to Ray; empty while its dashboard does not answer."""
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
    """Check whether a server accepts connections on a port."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def answers(port: int, path: str) -> bool:
    """Check whether an HTTP server answers with status 200."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=10) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):
        return False


def free_port() -> int:
    """Find a port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
