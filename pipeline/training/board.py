"""The thread between a running training and its driver: a tiny actor with the newest numbers and a wish to stop.

Ray can forward every worker's output to the driver, but then Ray's own noise comes with it; the newest numbers are
all that a live line needs.
"""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Any

import ray
import ray.train

from kernels_bank.runtime.progress import Progress


class Board:
    """Holds the newest (step, note), what went wrong, and whether the driver wants the run to stop."""

    def __init__(self) -> None:
        self._newest: tuple[int, str] = (0, "")
        self._failures: list[str] = []
        self._stop = False

    def put(self, step: int, note: str) -> None:
        """Called by rank 0."""
        self._newest = (step, note)

    def failed(self, reason: str) -> None:
        """Called by Ray Train's controller when a worker is lost."""
        self._failures.append(reason)

    def get(self) -> tuple[int, str, list[str]]:
        """Called by the driver: step, note, and the failures since the last call."""
        failures, self._failures = self._failures, []
        return *self._newest, failures

    def stop(self) -> None:
        """Called by the driver: write a checkpoint and end."""
        self._stop = True

    def stopping(self) -> bool:
        """Called by rank 0."""
        return self._stop


class StopWish:
    """The driver's wish as rank 0 sees it, asked for in the background so that no step waits for the answer."""

    def __init__(self, board: Any) -> None:  # noqa: ANN401 - an actor handle
        self._board, self._answer = board, board.stopping.remote()

    def __bool__(self) -> bool:
        if ray.wait([self._answer], timeout=0)[0]:
            if ray.get(self._answer):
                return True
            self._answer = self._board.stopping.remote()
        return False


class TellFailures(ray.train.UserCallback):
    """Ray Train replaces lost workers without a word; whoever watches the run should know that it did, and why."""

    def __init__(self, board: Any) -> None:  # noqa: ANN401 - an actor handle
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ANN401
        """Called by the controller."""
        self._board.failed.remote(failure_reason(worker_exceptions))


def failure_reason(failures: dict[int, Exception]) -> str:
    """The type and text of the first error, by rank; the whole traceback is in the log of the worker."""
    rank, error = min(failures.items())
    lines = str(error).strip().splitlines()
    return f"worker {rank}: {type(error).__name__}" + (f": {lines[-1]}" if lines else "")


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
                step, note, failures = ray.get(self.board.get.remote())
                for reason in failures:
                    print(
                        f"\n{reason}; the run goes on from its last checkpoint while max_failures allows",
                        file=sys.stderr,
                    )
                if step and step != shown:
                    # The rate counts from the first note on: a resumed run starts in the middle, and the first steps
                    # of any run wait for its data.
                    if shown is None:
                        bar.start_at(step)
                    bar.advance(step - (step if shown is None else shown), note=note)
                    shown = step
                if last:
                    return
