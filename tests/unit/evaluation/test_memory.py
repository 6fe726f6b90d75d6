"""Memory of a piece of work: the same for the first and the tenth time, and not what was held before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.evaluation.memory import PeakMemory

CPU = torch.device("cpu")


def touch(mib: int) -> np.ndarray:
    return np.ones(mib * 2**20, np.uint8)


def test_peak_is_counted_above_what_is_held_and_freed_memory_is_not_free_work():
    held = touch(120)
    found = []
    for _ in range(3):
        # Small pieces stay in the C library's heap when they are freed, which would hide the next round's.
        with PeakMemory(CPU) as used:
            pieces = [touch(1) for _ in range(60)]
            del pieces
        found.append(used.mib)
    assert found == pytest.approx([60, 60, 60], abs=6)
    assert held.sum() == held.size


def test_nothing_done_takes_nothing():
    with PeakMemory(CPU) as used:
        pass
    assert used.mib == pytest.approx(0, abs=2)


def test_a_system_that_does_not_tell_gives_no_number(monkeypatch, tmp_path):
    monkeypatch.setattr("pipeline.evaluation.memory._CLEAR", tmp_path / "no" / "such")
    with PeakMemory(CPU) as used:
        touch(5)
    assert used.mib is None
