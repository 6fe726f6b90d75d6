"""Helpers shared by the benchmarks: CPU seconds of this process and its children, and one thread for the network."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from types import TracebackType

import psutil
import pytest
import torch


class TreeUse:
    """`with TreeUse() as used: ...`, then `used.cpu` and `used.wall` in seconds.

    Sampled twice a second, so that what a process used counts although it has ended.
    """

    def __enter__(self) -> TreeUse:
        self._last: dict[tuple[int, float], float] = {}
        self._look()
        self._before = dict(self._last)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, daemon=True)
        self._thread.start()
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wall = time.perf_counter() - self._started
        self._stop.set()
        self._thread.join()
        self._look()
        self.cpu = sum(used - self._before.get(process, 0.0) for process, used in self._last.items())

    def _keep_looking(self) -> None:
        while not self._stop.wait(0.5):
            self._look()

    def _look(self) -> None:
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self._last[process.pid, process.create_time()] = times.user + times.system


@pytest.fixture
def tree_use() -> type[TreeUse]:
    """The class itself: every `with` is a measurement of its own."""
    return TreeUse


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread of torch's, so that both sides of a ratio are measured on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
