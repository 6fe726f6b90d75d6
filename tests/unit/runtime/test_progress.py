"""Progress in a log: one line an interval with rate and ETA, and a last one."""

from __future__ import annotations

import re

import pytest

from kernels_bank.runtime import progress
from kernels_bank.runtime.progress import Progress


def test_lines_in_a_log(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with Progress("write", 10, "shard") as bar:
        for _ in range(10):
            clock[0] += 4
            bar.advance(note="x")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "write: 3/10 shard (0.25 shard/s, ETA 28 s) x"
    assert lines[-1] == "write: 10/10 shard (0.25 shard/s, in 40.0 s) x"


def test_a_single_item_counts_by_its_share(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with Progress("restore", 1, "image") as bar:
        for share in (0.125, 0.25, 0.5, 0.75):
            clock[0] = 80 * share
            bar.within(share, "a.png: window 1 of 2")
        clock[0] = 80
        bar.advance(note="a.png")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "restore: 0/1 image (0.0125 image/s, ETA 70 s) a.png: window 1 of 2"
    assert lines[2] == "restore: 0/1 image (0.0125 image/s, ETA 40 s) a.png: window 1 of 2"
    assert lines[-1] == "restore: 1/1 image (0.0125 image/s, in 80.0 s) a.png"


def test_resumed_work_does_not_count_for_the_rate(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with Progress("train", 100, "step") as bar:
        bar.start_at(90)
        clock[0] += 5
        bar.advance(10)
    assert re.fullmatch(r"train: 100/100 step \(2 step/s, in 5\.0 s\)\n", capsys.readouterr().err)
