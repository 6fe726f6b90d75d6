"""The memory model against the bytes that the network itself allocates, counted on fake tensors."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.inference.memory import in_use, window_bytes
from pipeline.model import USRNet
from pipeline.model_config import RestorerConfig
from pipeline.training.planning.bookkeeping import Bookkeeper


@pytest.mark.parametrize("widths", [(8, 16, 32, 64), (16, 32, 64, 64), (64, 128, 256, 512)])
def test_a_window_takes_what_the_model_says(widths):
    config = RestorerConfig(widths=widths, unfoldings=2, residual_blocks=2)

    def peak(side: int) -> int:
        with FakeTensorMode(), Bookkeeper() as books, torch.no_grad():
            network = USRNet(config).eval()
            lr = torch.zeros(1, 3, side, side)
            books.peak = books.alive
            network(lr, torch.zeros(1, 13, 13), 2, 0.0)
            return books.peak

    counted = (peak(96) - peak(48)) / (4 * (96**2 - 48**2))
    assert counted <= window_bytes(config) <= 1.3 * counted


def test_memory_in_use_grows_with_what_is_used():
    before = in_use(torch.device("cpu"))
    held = torch.ones(2**24)
    assert 0.9 * 2**26 < in_use(torch.device("cpu")) - before < 1.2 * 2**26
    del held


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="what glibc keeps is given back")
def test_gaps_are_closed_before_a_window():
    """In a process of its own: the allocator keeps its setting for good."""
    code = """
import resource
import torch
from pathlib import Path
from pipeline.inference.allocator import keep_freed_memory
from pipeline.inference.memory import close_gaps

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

keep_freed_memory()
held = [torch.ones(2**18 if i % 2 else 2**22) for i in range(32)]  # 1 and 16 MiB in turn
del held[::2]
kept = resident()
close_gaps(torch.device("cpu"))
print(kept - resident())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 200 * 2**20
