"""How rank 0 writes into the run: handed over at once, sent in the background, kept while the server is away."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from pipeline.tracking.redact import mask_text
from pipeline.tracking.store import RunRef, client, is_final

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

_POINTS_PER_REQUEST = 1000  # the server's limit
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Point:
    key: str
    value: float
    step: int
    timestamp: int  # ms


class RunLogger:
    """Writes metrics, pictures and files of one run; no call waits for the server.

    One thread sends what has gathered every `interval_s`. What fails is kept and tried again with growing pauses,
    so a server that is away stops neither training nor, if it comes back, any point. After a restart from a
    checkpoint the steps between it and the kill come again: points and pictures that the run already has are
    dropped. Points of one metric must come in order of steps.

    Use it as a context manager, or call `close`.
    """

    def __init__(self, ref: RunRef, *, interval_s: float = 2.0) -> None:
        self._ref, self._interval = ref, interval_s
        self._points: deque[_Point] = deque()
        self._tasks: deque[Callable[[MlflowClient], None]] = deque()
        self._busy = 0  # items taken out of the queues but not sent yet
        self._last: dict[str, int] | None = None  # newest step recorded for each metric
        self._pictures: set[tuple[str, int]] | None = None
        self._lock = threading.Lock()
        self._wake, self._closing, self._given_up = threading.Event(), threading.Event(), threading.Event()
        self._away = False  # the last try failed
        self._monitor: SystemMetricsMonitor | None = None
        self._thread = threading.Thread(target=self._work, name="run-logger", daemon=True)
        self._thread.start()

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at a step."""
        now = int(time.time() * 1000)
        self._points.extend([_Point(key, float(value), step, now) for key, value in values.items()])

    def system(self, step: int) -> None:
        """Record what this machine and its cards are busy with, as MLflow's UI expects it: `system/...`."""
        if self._monitor is None:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            # Its own thread is not started: it would end at the first request that fails, and count steps of its own.
            self._monitor = SystemMetricsMonitor(self._ref.run_id, tracking_uri=self._ref.tracking_uri)
        self._monitor.collect_metrics()
        self.metrics(step, {f"system/{name}": value for name, value in self._monitor.aggregate_metrics().items()})
        for monitor in self._monitor.monitors:
            monitor.clear_metrics()

    def image(self, key: str, array: np.ndarray, step: int) -> None:
        """Record a picture, (H, W, 3) or (H, W) uint8, that the UI shows as a series over steps."""
        if array.dtype != np.uint8:
            raise ValueError(f"image '{key}' is {array.dtype}; uint8 is expected")
        picture = array.copy()
        self._tasks.append(lambda api: self._send_image(api, key, picture, step))

    def tag(self, key: str, value: str) -> None:
        """Record a tag; a later value replaces it."""
        shown = mask_text(value)[:5000]  # the store's limit

        def send(api: MlflowClient) -> None:
            api.set_tag(self._ref.run_id, key, shown)

        self._tasks.append(send)

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Record a file as it is now; it may be changed or deleted after the call."""
        staged = tempfile.TemporaryDirectory(prefix="blindsr-artifact-")
        copy = shutil.copy2(path, staged.name)

        def send(api: MlflowClient) -> None:
            api.log_artifact(self._ref.run_id, copy, folder)
            staged.cleanup()

        self._tasks.append(send)

    def artifacts(self, directory: str | Path, folder: str | None = None) -> None:
        """Record all files of a directory as they are now, below `folder`."""
        staged = tempfile.TemporaryDirectory(prefix="blindsr-artifact-")
        shutil.copytree(directory, staged.name, dirs_exist_ok=True)

        def send(api: MlflowClient) -> None:
            api.log_artifacts(self._ref.run_id, staged.name, folder)
            staged.cleanup()

        self._tasks.append(send)

    def input(self, name: str, digest: str, uri: str, context: str = "training") -> None:
        """Record what the run learns from. `digest` is the artefact's sha256; MLflow keeps 36 characters of it."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": mask_text(uri), "sha256": digest})
        dataset = Dataset(name=name, digest=digest[:36], source_type="code", source=source)
        item = DatasetInput(dataset, [InputTag("mlflow.data.context", context), InputTag("sha256", digest)])
        self._tasks.append(lambda api: api.log_inputs(self._ref.run_id, datasets=[item]))

    def flush(self, limit_s: float = 10.0) -> None:
        """Wait until all is sent, so that a kill loses none of it. A server that is away is not waited for."""
        self._wake.set()
        deadline = time.monotonic() + limit_s
        while (self._points or self._tasks or self._busy) and not self._away and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self, limit_s: float = 60.0) -> None:
        """Send what is left, for at most `limit_s`; what could not be sent by then is warned of and given up."""
        self._closing.set()
        self._wake.set()
        self._thread.join(limit_s)
        self._given_up.set()
        if self._thread.is_alive() and (left := len(self._points) + len(self._tasks) + self._busy):
            _log.warning(
                "the tracking server %s was away: %d points and files of run %s are lost",
                self._ref.shown,
                left,
                self._ref.run_id,
            )

    def _work(self) -> None:
        """The thread: send, rest, and come back sooner when there was an error or the end."""
        pause = self._interval
        while not self._given_up.is_set():
            if not self._closing.is_set():
                self._wake.wait(pause)
                self._wake.clear()
            ending = self._closing.is_set()
            try:
                api = client(self._ref.tracking_uri)
                self._send_points(api)
                self._send_tasks(api)
            except Exception as error:
                self._warn(error)
                pause = min(30.0, max(1.0, 2 * pause))
                self._given_up.wait(min(pause, 1.0) if ending else 0)
                continue
            pause, self._away = self._interval, False
            if ending and not self._points and not self._tasks:
                return

    def _send_points(self, api: MlflowClient) -> None:
        from mlflow.entities import Metric

        while self._points:
            if self._last is None:
                self._last = _last_steps(api, self._ref.run_id)
            self._busy = min(len(self._points), _POINTS_PER_REQUEST)
            batch = [self._points.popleft() for _ in range(self._busy)]
            last, fresh = dict(self._last), []
            for point in batch:
                if point.step > last.get(point.key, -1):
                    fresh.append(Metric(point.key, point.value, point.timestamp, point.step))
                    last[point.key] = point.step
            try:
                if fresh:
                    api.log_batch(self._ref.run_id, metrics=fresh)
            except Exception as error:
                if not is_final(error):
                    self._points.extendleft(reversed(batch))
                    self._busy = 0
                    raise
                _log.warning("%d points were refused and dropped: %s", len(batch), mask_text(str(error)))
            self._last, self._busy = last, 0

    def _send_tasks(self, api: MlflowClient) -> None:
        while self._tasks:
            try:
                self._tasks[0](api)
            except Exception as error:
                if not is_final(error):
                    raise
                _log.warning("a file was refused and dropped: %s", mask_text(str(error)))
            self._tasks.popleft()

    def _send_image(self, api: MlflowClient, key: str, picture: np.ndarray, step: int) -> None:
        if self._pictures is None:
            self._pictures = _recorded_pictures(api, self._ref.run_id)
        if (key, step) not in self._pictures:
            api.log_image(self._ref.run_id, picture, key=key, step=step, synchronous=True)
            self._pictures.add((key, step))

    def _warn(self, error: Exception) -> None:
        if not self._away:
            self._away = True
            reason = mask_text(str(error).splitlines()[0] if str(error) else type(error).__name__)
            _log.warning("tracking at %s fails, points are kept and sent later: %s", self._ref.shown, reason)


def _last_steps(api: MlflowClient, run_id: str) -> dict[str, int]:
    """The newest recorded step of each metric."""
    return {metric.key: metric.step for metric in api.get_run(run_id).data.to_proto().metrics}


def _recorded_pictures(api: MlflowClient, run_id: str) -> set[tuple[str, int]]:
    """(key, step) of the pictures of a run, read off MLflow's file names `images/KEY+step+STEP+timestamp+...`."""
    found = set()
    for info in api.list_artifacts(run_id, "images"):
        parts = info.path.removeprefix("images/").split("+")
        if len(parts) > 3 and parts[1] == "step" and parts[2].isdigit():
            found.add((parts[0].replace("~", "/"), int(parts[2])))
    return found
