"""A watch over Ray: if one of its essential processes dies, the job fails with one line instead of hanging."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import NoReturn

from kernels_bank.runtime import guard
from kernels_bank.runtime.errors import JobFailedError

_NAMES = {"gcs_server": "the head (gcs_server)", "raylet": "the node's manager (raylet)"}
_LOOK_S, _CLUSTER_LOOK_S = 0.2, 2.0
_MISSES = 25  # most of the minute after which Ray's C++ part silently exits this process; a head may restart meanwhile
_NEWS_S = 2.0  # Ray's errors come before the watch notices a death
_CLEAN_UP_S = 90.0
_ADVICE = "what is finished is kept, the same command resumes from it"
_death: str | None = None


class RayDiedError(JobFailedError):
    """Interrupt the main thread, wherever it is, after Ray has died."""


def watch_processes(processes: Mapping[str, subprocess.Popen]) -> None:
    """Watch the processes of a private Ray."""
    watched = {name: process for name, process in processes.items() if name in _NAMES}
    ends = [os.pidfd_open(process.pid) for process in watched.values()]

    def look() -> str | None:
        select.select(ends, [], [], _LOOK_S)
        for name, process in watched.items():
            if (status := process.poll()) is not None:
                how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
                return f"{_NAMES[name]} of this job's Ray {how}"
        return None

    _start(look)


def watch_cluster(address: tuple[str, int], node: tuple[str, int]) -> None:
    """Watch an existing cluster's head and the manager of this process's node, by their ports."""
    missed = 0

    def look() -> str | None:
        nonlocal missed
        time.sleep(_CLUSTER_LOOK_S)
        silent = [name for name, where in (("head", address), ("node's manager", node)) if not _listens(where)]
        missed = missed + 1 if silent else 0
        if missed < _MISSES:
            return None
        host, port = address if silent[0] == "head" else node
        return f"the {silent[0]} of the Ray cluster at {host}:{port} does not answer any more"

    _start(look)


def death(*, patience_s: float = 0.0) -> str | None:
    """Return which essential part of Ray has died, or None; wait up to `patience_s` seconds for the news."""
    deadline = time.monotonic() + patience_s
    while _death is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return _death


def explain(error: BaseException) -> str | None:
    """Return one line for an error caused by the death of a process of Ray; None for other errors."""
    ray = sys.modules.get("ray")
    if ray is None:
        return None
    of_ray = isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError)
    if death(patience_s=_NEWS_S if of_ray else 0):
        return _line()
    if not of_ray:
        return None
    said = str(error).strip().splitlines() or [""]
    return f"Ray failed ({type(error).__name__}: {said[0].strip().rstrip('.')}); {_ADVICE}"


def leave_at_once(status: int) -> NoReturn:
    """Exit without Ray's clean-up, which would wait for dead processes; the kernel ends the rest of Ray."""
    guard.leave()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _start(look: Callable[[], str | None]) -> None:
    """Watch until Ray is left; raise a death in the main thread by a signal, which interrupts its waiting."""
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        signal.signal(signal.SIGUSR2, _raise_death)
    threading.Thread(target=_watch, args=(look, in_main), name="ray-watch", daemon=True).start()


def _watch(look: Callable[[], str | None], in_main: bool) -> None:
    global _death
    import ray

    while ray.is_initialized():
        if (found := look()) is not None and ray.is_initialized():
            _death = found
            guard.say(_line())
            if not in_main:
                return
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGUSR2)
            time.sleep(_CLEAN_UP_S)  # time for the job's own clean-up; this thread dies with the process
            with contextlib.suppress(OSError):
                print(f"error: {_line()}", file=sys.stderr, flush=True)
            leave_at_once(1)


def _raise_death(number: int, frame: FrameType | None) -> None:
    raise RayDiedError(_line())


def _line() -> str:
    return f"{_death}; {_ADVICE}"


def _listens(where: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(where, timeout=5):
        return True
    return False
