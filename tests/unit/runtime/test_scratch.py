"""Temporary folders of killed processes are deleted by the next one; those of living ones and of others are not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from kernels_bank.runtime import scratch

_HOLD = "import sys; from kernels_bank.runtime import scratch; print(scratch.folder('checkpoint'), flush=True); input()"


def hold(temporary: Path) -> tuple[subprocess.Popen, Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_deleted_by_the_next(tmp_path: Path):
    killed, left = hold(tmp_path)
    living, used = hold(tmp_path)
    try:
        assert left.is_dir()
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        (tmp_path / "blindsr-scratch-of-somebody").symlink_to(tmp_path)
        (tmp_path / "blindsr-checkpoint-abc").mkdir()  # no mark of ours
        assert scratch.sweep(tmp_path) == 1
        assert not left.parent.exists()
        assert used.is_dir()
        assert (tmp_path / "blindsr-checkpoint-abc").is_dir()
    finally:
        living.communicate("\n", timeout=30)
    assert not used.parent.exists()  # it ended in peace and cleaned up itself


def test_a_folder_without_a_lock_may_be_in_the_making(tmp_path: Path):
    young, old = tmp_path / "blindsr-scratch-young", tmp_path / "blindsr-scratch-old"
    for folder in (young, old):
        folder.mkdir()
    os.utime(old, (0, 0))
    scratch.sweep(tmp_path)
    assert young.is_dir()
    assert not old.exists()
