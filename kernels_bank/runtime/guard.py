"""A shell that briefly outlives the job: it ends the remaining processes of Ray, and reports that the job died.

Ray's C++ part exits the process silently when it loses its object store, and SIGKILL leaves no time for a message. The
kernel then ends the processes that the job started itself, but the raylet's workers live on for seconds and its agents
for a minute. They are all in the sessions of the processes that the job started.
"""

from __future__ import annotations

import atexit
import contextlib
import subprocess

_LEFT = "left"
_DIED = (
    "this job's process died at once (SIGKILL, or Ray died under it); the same command resumes with what is finished"
)
_SCRIPT = """
said=$1
sessions=" "
while read -r line; do
    case "$line" in "session "*) sessions="$sessions${line#session } ";; *) said=$line;; esac
done
for stat in /proc/[0-9]*/stat; do
    { read -r line < "$stat"; } 2>/dev/null || continue
    set -- ${line##*) }
    case "$sessions" in *" $4 "*) pid=${stat#/proc/}; kill -s KILL "${pid%/stat}" 2>/dev/null;; esac
done
[ "$said" = left ] || echo "error: $said" >&2
"""
_shells: list[subprocess.Popen] = []


def set_up() -> None:
    """Start the shell before Ray, which may die during its start; the shell waits on a pipe that closes with us."""
    if _shells:
        return
    command = ["/bin/sh", "-c", _SCRIPT, "blindsr-ray-guard", _DIED]
    _shells.append(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True)
    )
    atexit.register(leave)


def take_over(session: int) -> None:
    """Make the shell end the processes of a session after this process has ended."""
    say(f"session {session}")


def say(line: str) -> None:
    """Set the line for the shell to print if this process dies before printing it itself."""
    for shell in _shells:
        with contextlib.suppress(OSError):
            assert shell.stdin is not None
            print(line, file=shell.stdin, flush=True)


def leave() -> None:
    """Tell the shell that this process exits normally, with everything reported."""
    say(_LEFT)
