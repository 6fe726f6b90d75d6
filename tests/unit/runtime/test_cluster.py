"""A Ray that is unavailable or does not start is reported in one line instead of an endless wait."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray

from kernels_bank.runtime import cluster, local_ray
from kernels_bank.runtime.errors import BadRequestError, JobFailedError


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Ray of the session, and an environment that is put back."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, "")  # noted, so that the end of the test puts the old value back
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(local_ray.time, "sleep", lambda seconds: None)


def test_the_dashboards_address(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray, "init", lambda **settings: pytest.fail("Ray would wait for ever"))
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(BadRequestError, match="dashboard"):
        cluster.connect()


def test_a_cluster_that_refuses_us(monkeypatch: pytest.MonkeyPatch):
    def refuse(**settings: object) -> None:
        raise RuntimeError("Version mismatch:\n The cluster was started with\n Ray: 2.0")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(cluster, "check_address", lambda address: None)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(BadRequestError, match=r"^RAY_ADDRESS head:6379: cannot join the Ray cluster: Version mismatch"):
        cluster.connect()


def test_auto_joins_the_address_that_was_found_for_it(monkeypatch: pytest.MonkeyPatch):
    def refuse(*, address: str, **settings: object) -> None:
        raise RuntimeError(f"asked at {address}")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(cluster, "address_here", lambda: "10.0.0.1:6379")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(BadRequestError, match=r"asked at 10\.0\.0\.1:6379"):
        cluster.connect()


def test_a_local_ray_is_started_again(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def overloaded(**settings: object) -> None:
        calls.append(settings)
        raise Exception("The current node timed out during startup.\nSee the logs")

    monkeypatch.setattr(ray, "init", overloaded)
    with pytest.raises(JobFailedError, match=r"run the command again: The current node timed out during startup\.$"):
        cluster.connect()
    assert len(calls) == 3


def test_a_death_before_ray_has_started_is_a_line(tmp_path: Path):
    """Ray's C++ ends the process without a word when what it has just started dies."""
    job = """
import os, subprocess, ray
from kernels_bank.runtime import cluster, local_ray

def dies(**settings):
    from ray._private import services
    services.ConsolePopen(["sleep", "600"])
    print(local_ray.started["sleep"].pid, flush=True)
    os._exit(1)

ray.init = dies
cluster.connect()
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", job],
        env=environment | {"RAY_TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr.startswith("error: this job's process died at once"), done.stderr
    assert done.stderr.count("\n") == 1
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", done.stdout.strip()], capture_output=True, text=True, check=False
    )
    assert state.stdout.strip()[:1] in ("", "Z")


def test_what_cannot_succeed_is_tried_once(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def impossible(**settings: object) -> None:
        calls.append(settings)
        raise OSError("AF_UNIX path length cannot exceed 107 bytes")

    monkeypatch.setattr(ray, "init", impossible)
    with pytest.raises(JobFailedError, match="AF_UNIX"):
        cluster.connect()
    assert len(calls) == 1


_HELPERS = {"start_api_server", "start_monitor", "start_log_monitor"}


@pytest.mark.parametrize("verbose", [False, True])
def test_how_a_local_ray_is_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verbose: bool):
    """With a token of its own whatever the user's mode is, SIGTERM blocked meanwhile, files that only we can enter.

    Without the servers that nobody asks; that of the workers' output only where it is shown.
    """
    seen: dict[str, object] = {}
    starters = {name: getattr(ray._private.node.Node, name) for name in _HELPERS}

    def start(**settings: object) -> None:
        seen.update(settings, environment=dict(os.environ), mask=signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        seen["started"] = {name for name in _HELPERS if getattr(ray._private.node.Node, name) is starters[name]}
        ray._private.utils.set_sigterm_handler(signal.SIG_IGN)  # as Ray does
        seen["handler"] = signal.getsignal(signal.SIGTERM)

    def ours(number: int, frame: object) -> None:
        pass

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(local_ray.guard, "set_up", lambda: None)
    monkeypatch.setattr(cluster.watch, "watch_processes", lambda processes: None)
    before = signal.signal(signal.SIGTERM, ours)
    try:
        cluster.connect(verbose=verbose)
        assert signal.getsignal(signal.SIGTERM) is ours
        assert seen["handler"] not in (signal.SIG_IGN, ours), "it waits until Ray has started"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen["started"] == ({"start_log_monitor"} if verbose else set())
    assert {name: getattr(ray._private.node.Node, name) for name in _HELPERS} == starters
    environment = seen["environment"]
    assert isinstance(environment, dict)
    assert "RAY_AUTH_MODE" not in environment  # then Ray sets it to `token`
    assert len(environment["RAY_AUTH_TOKEN"]) == 64
    assert signal.SIGTERM in seen["mask"]  # type: ignore[operator]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    folder = tmp_path / f"blindsr-ray-{os.getuid()}"
    assert Path(str(seen["_temp_dir"])).parent == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_another_has_taken(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"blindsr-ray-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadRequestError, match="set RAY_TMPDIR to a folder of your own"):
        cluster.connect()


def test_what_rays_workers_left_is_deleted_once_ray_has_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    hold = "from kernels_bank.runtime import scratch; print(scratch.folder('checkpoint'), flush=True); input()"
    worker = subprocess.Popen(
        [sys.executable, "-c", hold],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert worker.stdout is not None
    left = Path(worker.stdout.readline().strip())
    assert left.is_dir()

    def shut_down() -> None:  # so does Ray: its workers have no time to clean up
        worker.kill()
        worker.wait()

    monkeypatch.setattr(ray, "shutdown", shut_down)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    local_ray._leave()
    assert not left.parent.exists()
