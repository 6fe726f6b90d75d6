"""A private Ray of this process: no one else can connect, and signals to the process group do not end it."""

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

# One token for all Rays of this process, since Ray keeps the first token it reads. Only the environment carries it.
_TOKEN = secrets.token_hex(32)
_ATTEMPTS = 3
_CORE_LEVEL = "RAY_BACKEND_LOG_LEVEL"  # log level of Ray's C++ part of a process
_ALONE = "BLINDSR_RAY_ALONE"  # set in the environment of all processes of a job's private Ray
_silenced: list[bool] = []  # not empty while this process's own core is silenced


class _RayProcess(subprocess.Popen):
    """Run one of Ray's processes in its own session, with SIGTERM blocked, so it is ended by SIGKILL.

    The agents of a killed raylet survive it for up to a minute; they are in its process group.
    """

    def __init__(self, command: list[str], **settings: Any) -> None:  # noqa: ANN401 - passed on by Ray
        environment = dict(settings.pop("env", None) or os.environ) | {_ALONE: "1"}
        if _silenced:
            environment.pop(_CORE_LEVEL, None)  # for this process's core only; the others keep writing their logs
        super().__init__(command, start_new_session=True, env=environment, **settings)
        guard.take_over(self.pid)
        started[Path(command[0]).name] = self

    def terminate(self) -> None:
        """Kill the process, since it does not receive SIGTERM."""
        self.kill()

    def kill(self) -> None:
        """Kill the process and the processes it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        super().kill()


# The processes of the Ray started last, by program: `gcs_server` and `raylet`, without which it cannot work.
started: dict[str, subprocess.Popen] = {}


def is_alone() -> bool:
    """Check whether this process belongs to a job's private Ray, as its driver or as a worker."""
    return bool(started) or _ALONE in os.environ


def start(cpus: int, *, logging_level: int, log_to_driver: bool) -> None:
    """Start a private Ray on this machine for this process, and connect to it.

    Its servers listen only on loopback and require a token, and its files are in a folder that only this user can
    enter. Its processes have their own sessions with SIGTERM blocked. So a signal from `timeout`, systemd or Slurm to
    all processes of a job only affects this process, which then ends the job in an orderly way. The kernel kills them
    when this process dies. On a busy machine Ray gives up starting after 30 s, and the start is tried again.

    Args:
        cpus: number of its logical CPUs.
        logging_level: level of Ray's loggers in this process.
        log_to_driver: whether to show its workers' output here.

    Raises:
        BadRequestError: its folder is not this user's.
        JobFailedError: Ray failed to start three times.
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
    """Make processes that Ray starts in the block listen on loopback, require our token, and survive signals to us.

    Three servers are left out, which would cost two seconds of CPU: the dashboard's, which Ray starts even without a
    dashboard, the autoscaler, which has no machines to request, and the reader of the workers' logs.
    """
    from ray._private import node, ray_constants
    from ray._private import services as typed_services

    services: Any = typed_services
    left_out = ["start_api_server", "start_monitor"] + ([] if log_to_driver else ["start_log_monitor"])
    starters = {name: getattr(node.Node, name) for name in left_out if hasattr(node.Node, name)}

    os.environ.pop("RAY_AUTH_MODE", None)  # Ray then enables the token for this process's Ray
    os.environ["RAY_AUTH_TOKEN"] = _TOKEN
    # Ray's switch for a cluster of several machines. If on, loopback is replaced by the machine's own address.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    several, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False  # read at import
    started.clear()
    popen: Any = services.ConsolePopen
    services.ConsolePopen = _RayProcess
    for name in starters:
        setattr(node.Node, name, lambda *_, **__: None)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # inherited by processes started in the block
    try:
        yield
    finally:
        services.ConsolePopen, ray_constants.ENABLE_RAY_CLUSTER = popen, several
        for name, starter in starters.items():
            setattr(node.Node, name, starter)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def own_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM while Ray starts or is joined, and defer signals until then.

    Ray installs its own handler, which exits silently. Blocking the signal is not enough, since other threads receive
    it. A half-started Ray cannot be shut down in an orderly way.
    """
    from ray._private import utils as typed_utils

    utils: Any = typed_utils
    alone = threading.current_thread() is not threading.main_thread()  # only the main thread can set signal handlers
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
    """Silence Ray's C++ part of this process, which starts in the block, except for fatal errors.

    Otherwise it would print its own lines about each server that dies, besides our one line.
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
    """Redirect standard error to a file in the block.

    Ray's C++ part reports each attempt to reach a dead server from its own thread. The failure is raised as an
    exception anyway.
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
    """Shut Ray down, then delete the temporary files of its workers, which Ray kills before they can do so."""
    import ray

    guard.leave()
    ray.shutdown()
    scratch.sweep(Path(tempfile.gettempdir()))


def _end() -> None:
    """End the processes left by a failed start."""
    import ray

    with contextlib.suppress(Exception):
        ray.shutdown()
    for process in started.values():
        process.kill()
        process.wait()


def _private_folder() -> Path:
    """Make a private folder for this user's Ray sessions; Ray would make its own accessible to everybody.

    Raises:
        BadRequestError: another user has created a folder of this name.
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
    return folder / "r"  # short, since names of sockets in it are limited to 107 bytes
