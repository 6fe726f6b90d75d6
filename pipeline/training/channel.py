"""The thread between a running training and its driver: a tiny actor with the newest numbers and what to say.

Ray can forward every worker's output to the driver, but then Ray's own noise comes with it; the newest numbers are
all that a live line needs. The actor's process imports this module, and with it no more than Ray itself.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kernels_bank.runtime import watch
from kernels_bank.runtime.progress import Progress

_ANSWER_S = 10.0
_SAY_LATE_S = 20.0  # Slurm and Kubernetes send SIGKILL 30 s after SIGTERM


class DriverChannel:
    """Hold the newest (step, note), what the user should know, and who wants the run to end."""

    def __init__(self) -> None:
        self._newest: tuple[int, str] = (0, "")
        self._said: list[str] = []
        self._fatal: tuple[str, str] | None = None
        self._stop = False

    def put(self, step: int, note: str) -> None:
        """Take the newest numbers from rank 0."""
        self._newest = (step, note)

    def say(self, line: str) -> None:
        """Take a line from anyone who has something to tell the user."""
        self._said.append(line)

    def get(self) -> tuple[int, str, list[str]]:
        """Return step, note, and what was said since the driver's last call."""
        said, self._said = self._said, []
        return *self._newest, said

    def report_fatal(self, reason: str, advice: str) -> None:
        """Record that the run has failed in a way that a restart of its workers does not mend."""
        self._fatal = self._fatal or (reason, advice)

    def failed(self, reason: str) -> None:
        """Record a failure that the controller answers by restarting the workers.

        Not told when the run was given up.
        """
        if self._fatal is None:
            self._said.append(f"{reason}; the run goes on from its last checkpoint while max_failures allows")

    def fatal(self) -> tuple[str, str] | None:
        """Return why the run was given up, and what to do; nothing if it was not."""
        return self._fatal

    def stop(self) -> None:
        """Record the driver's wish: write a checkpoint and end."""
        self._stop = True

    def stopping(self) -> bool:
        """Tell rank 0 whether the driver wishes to stop."""
        return self._stop


class StopFlag:
    """Ask for the driver's wish in the background, so that no step of rank 0 waits for the answer."""

    def __init__(self, channel: Any) -> None:  # noqa: ANN401 - an actor handle
        self._channel, self._answer = channel, channel.stopping.remote()

    def __bool__(self) -> bool:
        if ray.wait([self._answer], timeout=0)[0]:
            if ray.get(self._answer):
                return True
            self._answer = self._channel.stopping.remote()
        return False


def say(channel: Any, line: str) -> None:  # noqa: ANN401 - an actor handle
    """Tell the user something, without waiting."""
    channel.say.remote(line)


class LiveLine:
    """Show what rank 0 puts on `channel` as a progress bar over `steps` while the block runs, and hand on `stop`.

    The channel is started again when it dies: its newest numbers come again, and so does the wish to stop.
    """

    def __init__(self, steps: int, checkpoint: Callable[[], str]) -> None:
        # Beside the driver: on any other node it would be lost with that node, and the run with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        again = {"max_restarts": -1, "max_task_retries": -1}
        self.channel: Any = ray.remote(num_cpus=0)(DriverChannel).options(scheduling_strategy=here, **again).remote()
        self.stop = threading.Event()  # set by the driver: the workers are to end with a checkpoint
        self._steps, self._checkpoint, self._ended = steps, checkpoint, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> LiveLine:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=_ANSWER_S)  # without Ray there is no answer to wait for

    def fatal(self) -> tuple[str, str] | None:
        """Return why the run was given up, and what to do; nothing if it was not, or if Ray is not there to tell."""
        if watch.death() is None:
            with contextlib.suppress(ray.exceptions.RayError):
                return ray.get(self.channel.fatal.remote(), timeout=_ANSWER_S)
        return None

    def _watch(self) -> None:
        shown: int | None = None
        asked_at: float | None = None
        with Progress("train", self._steps, "step") as bar:
            while True:
                last = self._ended.wait(0.5)
                if watch.death():
                    return  # without its object store Ray would end this process at the next call
                if self.stop.is_set() and not last:
                    self.channel.stop.remote()  # again each time: a channel that was started anew does not know
                    asked_at = asked_at or time.monotonic()
                    if time.monotonic() - asked_at > _SAY_LATE_S:
                        asked_at = float("inf")
                        line = f"{_SAY_LATE_S:g} s after the signal the checkpoint is not written; {self._checkpoint()}"
                        print(f"\n{line}; SIGKILL now would lose what came after", file=sys.stderr, flush=True)
                try:
                    step, note, said = ray.get(self.channel.get.remote(), timeout=_ANSWER_S)
                except ray.exceptions.RayError:  # it is being started again
                    if last:
                        return
                    continue
                for line in said:
                    print(f"\n{line}", file=sys.stderr, flush=True)
                if step and step != shown:
                    # The rate counts from the first note on: a resumed run starts in the middle, and the first steps
                    # of any run wait for its data.
                    if shown is None:
                        bar.start_at(step)
                    bar.advance(step - (step if shown is None else shown), note=note)
                    shown = step
                if last:
                    return
