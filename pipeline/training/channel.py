"""The channel between a running training and its driver: a tiny actor with the newest metrics and messages.

Ray can forward every worker's output to the driver, but adds its own noise, and a live line only needs the newest
metrics. The actor's process imports this module, which imports nothing heavy but Ray.
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
    """Hold the newest (step, note), messages for the user, and a request to stop."""

    def __init__(self) -> None:
        self._newest: tuple[int, str] = (0, "")
        self._said: list[str] = []
        self._fatal: tuple[str, str] | None = None
        self._stop = False

    def put(self, step: int, note: str) -> None:
        """Take the newest step and note from rank 0."""
        self._newest = (step, note)

    def say(self, line: str) -> None:
        """Take a message for the user from any process."""
        self._said.append(line)

    def get(self) -> tuple[int, str, list[str]]:
        """Return step, note, and the messages since the driver's last call."""
        said, self._said = self._said, []
        return *self._newest, said

    def report_fatal(self, reason: str, advice: str) -> None:
        """Record a failure that a restart of the workers cannot fix."""
        self._fatal = self._fatal or (reason, advice)

    def failed(self, reason: str) -> None:
        """Record a failure after which the controller restarts the workers.

        It is ignored after a fatal failure.
        """
        if self._fatal is None:
            self._said.append(f"{reason}; the run resumes from its last checkpoint while max_failures allows")

    def fatal(self) -> tuple[str, str] | None:
        """Return the reason of a fatal failure and advice; None if there was none."""
        return self._fatal

    def stop(self) -> None:
        """Record the driver's request to write a checkpoint and stop."""
        self._stop = True

    def stopping(self) -> bool:
        """Return to rank 0 whether the driver has requested a stop."""
        return self._stop


class StopFlag:
    """Ask for the driver's stop request in the background, so that no step of rank 0 waits for the answer."""

    def __init__(self, channel: Any) -> None:  # noqa: ANN401 - an actor handle
        self._channel, self._answer = channel, channel.stopping.remote()

    def __bool__(self) -> bool:
        if ray.wait([self._answer], timeout=0)[0]:
            if ray.get(self._answer):
                return True
            self._answer = self._channel.stopping.remote()
        return False


def say(channel: Any, line: str) -> None:  # noqa: ANN401 - an actor handle
    """Send a message to the user, without waiting."""
    channel.say.remote(line)


class LiveLine:
    """Show the state that rank 0 puts on `channel` as a progress bar over `steps`, and pass on `stop`.

    The channel is restarted if it dies: its metrics and the stop request are then sent again.
    """

    def __init__(self, steps: int, checkpoint: Callable[[], str]) -> None:
        # On the driver's node: if another node were lost, the channel and the run would be lost with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        again = {"max_restarts": -1, "max_task_retries": -1}
        self.channel: Any = ray.remote(num_cpus=0)(DriverChannel).options(scheduling_strategy=here, **again).remote()
        self.stop = threading.Event()  # set by the driver: the workers should write a checkpoint and stop
        self._steps, self._checkpoint, self._ended = steps, checkpoint, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> LiveLine:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=_ANSWER_S)  # without Ray there will be no answer

    def fatal(self) -> tuple[str, str] | None:
        """Return the reason of a fatal failure and advice; None if there was none or if Ray is down."""
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
                    return  # without its object store, Ray would kill this process at the next call
                if self.stop.is_set() and not last:
                    self.channel.stop.remote()  # repeated, since a restarted channel has forgotten it
                    asked_at = asked_at or time.monotonic()
                    if time.monotonic() - asked_at > _SAY_LATE_S:
                        asked_at = float("inf")
                        line = f"{_SAY_LATE_S:g} s after the signal the checkpoint is not written; {self._checkpoint()}"
                        print(f"\n{line}; SIGKILL now would lose what came after", file=sys.stderr, flush=True)
                try:
                    step, note, said = ray.get(self.channel.get.remote(), timeout=_ANSWER_S)
                except ray.exceptions.RayError:  # the channel is restarting
                    if last:
                        return
                    continue
                for line in said:
                    print(f"\n{line}", file=sys.stderr, flush=True)
                if step and step != shown:
                    # The rate is measured from the first note: a resumed run starts in the middle, and the first steps
                    # of any run wait for its data.
                    if shown is None:
                        bar.start_at(step)
                    bar.advance(step - (step if shown is None else shown), note=note)
                    shown = step
                if last:
                    return
