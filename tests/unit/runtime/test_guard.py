"""The shell that outlives a job: it ends the sessions it was given, and speaks only when the job could not."""

from __future__ import annotations

import subprocess
import sys

import pytest

_JOB = """
import os, subprocess, sys
from kernels_bank.runtime import guard
guard.set_up()
other = subprocess.Popen(["sleep", "600"], start_new_session=True)
guard.take_over(other.pid)
guard.set_up()
print(other.pid, flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("os.kill(os.getpid(), 9)", "error: this job's process died at once"),
        ("guard.say('the head died; go on'); os._exit(1)", "error: the head died; go on\n"),
        ("guard.say('the head died; go on'); guard.leave(); os._exit(1)", ""),
        ("guard.leave()", ""),
        ("sys.exit(1)", ""),
    ],
)
def test_what_it_says_and_ends(end: str, said: str):
    job = subprocess.run(
        [sys.executable, "-c", _JOB.format(end=end)], capture_output=True, text=True, timeout=60, check=False
    )
    # Its standard error closes when the shell has ended.
    assert job.stderr.startswith(said)
    assert bool(job.stderr) == bool(said)
    state = subprocess.run(["ps", "-o", "stat=", "-p", job.stdout.strip()], capture_output=True, text=True, check=False)
    assert state.stdout.strip()[:1] in ("", "Z")
