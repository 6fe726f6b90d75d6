"""A shell that outlives the job by a moment: it ends what is left of Ray, and says that the job died.

Ray's C++ ends the process without a word when it loses its object store, and SIGKILL leaves no time for one. The
kernel then ends the processes that the job started itself, but not the raylet's agents, which live on for a minute.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterable

_LEFT = "left"
_DIED = (
    "this job's process died at once (SIGKILL, or Ray died under it); the same command goes on with what is finished"
)
_SCRIPT = """
said=$1; shift
while read -r line; do said=$line; done
for group; do kill -s KILL -- "-$group" 2>/dev/null; done
[ "$said" = left ] || echo "error: $said" >&2
"""
_shells: list[subprocess.Popen] = []


def set_up(groups: Iterable[int]) -> None:
    """Start the shell; it waits at a pipe that closes with this process.

    Args:
        groups: process groups to end then.
    """
    command = ["/bin/sh", "-c", _SCRIPT, "blindsr-ray-guard", _DIED, *map(str, groups)]
    _shells.append(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True)
    )


def say(line: str) -> None:
    """Give the line to be printed if this process dies before it has said it itself."""
    for shell in _shells:
        with contextlib.suppress(OSError):
            assert shell.stdin is not None
            print(line, file=shell.stdin, flush=True)


def leave() -> None:
    """Tell that this process ends in order, with all said."""
    say(_LEFT)
