"""A Ray that this process starts for itself: nobody else gets in, and no signal to its process group ends it."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kernels_bank.runtime import guard, scratch
from kernels_bank.runtime.errors import BadRequestError, JobFailedError

# One for all that this process starts: Ray keeps the first token it has read. It travels in the environment only.
_TOKEN = secrets.token_hex(32)
_ATTEMPTS = 3
_CORE_LEVEL = "RAY_BACKEND_LOG_LEVEL"  # what Ray's C++ part of a process writes
_ALONE = "BLINDSR_RAY_ALONE"  # in the environment of all processes of a Ray that a job started for itself
_silenced: list[bool] = []  # not empty while this process's own core is told to be silent


class _RayProcess(subprocess.Popen):
    """One of Ray's processes, in a session of its own. SIGTERM is blocked in it, so ending it takes SIGKILL.

    A raylet that is killed leaves its agents behind for a minute; they are in its process group.
    """

    def __init__(self, command: list[str], **settings: Any) -> None:  # noqa: ANN401 - what Ray passes on
        environment = dict(settings.pop("env", None) or os.environ) | {_ALONE: "1"}
        if _silenced:
            environment.pop(_CORE_LEVEL, None)  # meant for this process's core; theirs go on writing their logs
        super().__init__(command, start_new_session=True, env=environment, **settings)
        guard.take_over(self.pid)
        started[Path(command[0]).name] = self

    def terminate(self) -> None:
        """End it at once."""
        self.kill()

    def kill(self) -> None:
        """End it and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        super().kill()


# The processes of the Ray that was started last, by program: `gcs_server` and `raylet` are those it cannot do without.
started: dict[str, subprocess.Popen] = {}


def is_alone() -> bool:
    """Check whether this process belongs to a Ray that a job started for itself, as its driver or as a worker."""
    return bool(started) or _ALONE in os.environ


def start(cpus: int, *, logging_level: int, log_to_driver: bool) -> None:
    """Start Ray on this machine for this process alone, and connect to it.

    Its servers listen on loopback only and ask for a token, its files lie in a folder that only this user can enter.
    Its processes live in sessions of their own with SIGTERM blocked: what `timeout`, systemd or Slurm send to all
    processes of a job reaches this process only, which then ends the job in order. The kernel kills them when this
    process dies. On a busy machine Ray gives up starting after 30 s; then it is started once more.

    Args:
        cpus: logical CPUs of it.
        logging_level: of Ray's loggers in this process.
        log_to_driver: whether its workers' output is shown here.

    Raises:
        BadRequestError: its folder is not this user's.
        JobFailedError: Ray did not start, three times.
    """
    import ray

    folder = _private_folder()
    guard.set_up()
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with (
                own_sigterm(),
                _as_ours(log_to_driver=log_to_driver),
                contextlib.nullcontext() if log_to_driver else _silent_core(),
                contextlib.nullcontext() if log_to_driver else _stderr_into(folder.parent / "start.log"),
            ):
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    logging_level=logging_level,
                    log_to_driver=log_to_driver,
                    _temp_dir=str(folder),
                )
                atexit.register(_leave)
            return
        except Exception as error:  # Ray raises nothing more specific
            _end()
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if attempt == _ATTEMPTS or isinstance(error, (OSError, ValueError)):
                raise JobFailedError(f"Ray did not start on this machine, run the command again: {reason}") from error
            time.sleep(attempt)


@contextlib.contextmanager
def _as_ours(*, log_to_driver: bool) -> Iterator[None]:
    """Let what Ray starts in the block listen on loopback, ask for our token, and outlive signals to this process.

    Three of its servers are left out, which cost two seconds of CPU: that of the dashboard, which Ray starts even
    without a dashboard, the autoscaler, which has no machines to ask for, and the reader of the workers' logs.
    """
    from ray._private import node, ray_constants
    from ray._private import services as typed_services

    services: Any = typed_services
    left_out = ["start_api_server", "start_monitor"] + ([] if log_to_driver else ["start_log_monitor"])
    starters = {name: getattr(node.Node, name) for name in left_out if hasattr(node.Node, name)}

    os.environ.pop("RAY_AUTH_MODE", None)  # then Ray turns the token on for a Ray of this process
    os.environ["RAY_AUTH_TOKEN"] = _TOKEN
    # Ray's name for: a cluster of this machine only. Without it loopback is replaced by the machine's own address.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    several, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False  # read at import
    started.clear()
    popen: Any = services.ConsolePopen
    services.ConsolePopen = _RayProcess
    for name in starters:
        setattr(node.Node, name, lambda *_, **__: None)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # processes started meanwhile inherit it
    try:
        yield
    finally:
        services.ConsolePopen, ray_constants.ENABLE_RAY_CLUSTER = popen, several
        for name, starter in starters.items():
            setattr(node.Node, name, starter)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def own_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM while Ray starts or is joined, and let a signal wait until that is done.

    Ray puts a handler in its place that exits without a word. Blocking the signal is not enough, as other threads take
    it. A Ray that is half there cannot be ended in order.
    """
    from ray._private import utils as typed_utils

    utils: Any = typed_utils
    alone = threading.current_thread() is not threading.main_thread()  # signals belong to the main thread's code
    if alone or signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, None):
        yield
        return
    came: list[int] = []
    rays, ours = utils.set_sigterm_handler, signal.signal(signal.SIGTERM, lambda number, _frame: came.append(number))
    utils.set_sigterm_handler = lambda _handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = rays
        signal.signal(signal.SIGTERM, ours)
        if came:
            signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def _silent_core() -> Iterator[None]:
    """Let Ray's C++ part in this process, which starts in the block, write nothing but what ends the process.

    Otherwise it writes lines of its own for each server that dies, beside our one line.
    """
    if _CORE_LEVEL in os.environ:  # the user's own choice, for Ray's servers too
        yield
        return
    os.environ[_CORE_LEVEL] = "fatal"
    _silenced.append(True)
    try:
        yield
    finally:
        _silenced.clear()
        del os.environ[_CORE_LEVEL]


@contextlib.contextmanager
def _stderr_into(file: Path) -> Iterator[None]:
    """Let what is written to standard error in the block go to a file.

    Ray's C++ part tells of each try to reach a server that has died, from a thread of its own. The failure is raised
    as an exception all the same.
    """
    shown, log = os.dup(2), os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 2)
    try:
        yield
    finally:
        os.dup2(shown, 2)
        os.close(shown)
        os.close(log)


def _leave() -> None:
    """End Ray in order, then delete the temporary files of its workers: Ray kills them, so they cannot do it."""
    import ray

    guard.leave()
    ray.shutdown()
    scratch.sweep(Path(tempfile.gettempdir()))


def _end() -> None:
    """End what a start that failed has left."""
    import ray

    with contextlib.suppress(Exception):
        ray.shutdown()
    for process in started.values():
        process.kill()
        process.wait()


def _private_folder() -> Path:
    """Make the folder of this user's Ray sessions, which nobody else can enter; Ray makes its own open to everybody.

    Raises:
        BadRequestError: another user has taken the name.
    """
    base = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    folder = base / f"blindsr-ray-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            raise PermissionError(0, "it is not this user's folder")
        folder.chmod(0o700)
    except OSError as error:
        raise BadRequestError(
            f"{folder}: Ray cannot keep its files there ({error.strerror}); set RAY_TMPDIR to a folder of your own"
        ) from error
    return folder / "r"  # short: the names of sockets in it may have 107 bytes
