"""How a training worker tells the driver's terminal where it stands: a tiny actor between them.

Ray can forward every worker's output to the driver, but then Ray's own noise comes with it; the newest numbers are
all that a live line needs.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import ray

from kernels_bank.runtime.progress import Progress


class Board:
    """Holds the newest (step, note)."""

    def __init__(self) -> None:
        self._newest: tuple[int, str] = (0, "")

    def put(self, step: int, note: str) -> None:
        """Called by rank 0."""
        self._newest = (step, note)

    def get(self) -> tuple[int, str]:
        """Called by the driver."""
        return self._newest


class LiveLine:
    """While the block runs, shows what rank 0 puts on `board` as a progress bar over `steps`."""

    def __init__(self, steps: int) -> None:
        self.board: Any = ray.remote(num_cpus=0)(Board).remote()
        self._steps, self._stop = steps, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> LiveLine:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        shown: int | None = None
        with Progress("train", self._steps, "step") as bar:
            while True:
                last = self._stop.wait(0.5)
                step, note = ray.get(self.board.get.remote())
                if step != shown and step:
                    # The rate counts from the first note on: a resumed run starts in the middle, and the first steps
                    # of any run wait for its data.
                    if shown is None:
                        bar.start_at(step)
                    bar.advance(step - (step if shown is None else shown), note=note)
                    shown = step
                if last:
                    return
