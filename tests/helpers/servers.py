"""Servers that tests start for themselves: S3 over HTTP, PostgreSQL, MLflow. Each ends with its block."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

REPO = Path(__file__).parents[2]


def s3_variables(endpoint: str) -> dict[str, str]:
    """Return the environment variables of a client of the S3 server at `endpoint`."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Run an S3 server without any bucket; yields its endpoint."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="blindsr-s3-") as folder:
        command = [sys.executable, str(REPO / "infra" / "s3_server.py"), "--port", str(port), "--folder", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for_port(port, server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


@contextlib.contextmanager
def postgres_server() -> Iterator[str | None]:
    """Run PostgreSQL; yields the URI of a database, or nothing where its programs or its driver are not installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs or importlib.util.find_spec("psycopg2") is None:
        yield None
        return
    port = free_port()
    # It refuses to run as root, and its user could not enter pytest's own folders.
    user = "postgres" if os.geteuid() == 0 else None
    account = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
    with tempfile.TemporaryDirectory(prefix="blindsr-pg-") as folder, contextlib.ExitStack() as stack:
        if user:
            shutil.chown(folder, user)
        data, quiet = f"{folder}/data", {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
        initialise = [programs[-1], "-D", data, "-U", "mlflow", "--auth=trust", "--no-sync"]
        subprocess.run(initialise, check=True, **account, **quiet)
        serve = [programs[-1].with_name("postgres"), "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"]
        server = subprocess.Popen(serve, **account, **quiet)
        stack.callback(stop, server, signal.SIGINT)
        wait_for_port(port, server)
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"


@contextlib.contextmanager
def mlflow_server(
    backend: str,
    artifacts: str,
    folder: Path,
    variables: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> Iterator[str]:
    """Run an MLflow tracking server; yields its URI.

    Args:
        backend: URI of its database.
        artifacts: URI under which it keeps files.
        folder: its working directory, which gets its log.
        variables: added to its environment, such as those of an S3 server.
        options: added to its command line.
    """
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend, "--workers", "1"]
    command += ["--artifacts-destination", artifacts, "--host", "127.0.0.1", "--port", str(port), *options]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment = {**os.environ, **quiet, **(variables or {})}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, stdout=log, stderr=log)
        try:
            wait_for_port(port, server)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as answer:
                assert answer.status == 200
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, server: subprocess.Popen) -> None:
    """Wait until the server listens. Raises AssertionError when it ends before, TimeoutError after two minutes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server ended while starting"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")


def stop(server: subprocess.Popen, how: signal.Signals) -> None:
    """End the server by a signal and wait for it."""
    server.send_signal(how)
    server.wait(timeout=30)
