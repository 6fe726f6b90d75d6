"""Rank 0's logger of a run: records are queued, sent in the background, and kept while the server is unavailable."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from kernels_bank.runtime.redact import mask_text
from pipeline.images.encode import encode_png
from pipeline.tracking.outbox import Outbox, Picture, Point, Tag, recorded_pictures
from pipeline.tracking.server import without_login
from pipeline.tracking.store import RunRef, client, is_final, is_silence, reason_of, refused_status

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

LOST = "tracking.lost"  # tag of a run: records that the store refused
_POINTS_PER_REQUEST = 1000  # the server's limit
# Number of refusals until one counts as final, since a request that was truncated in transit is refused, too.
_REFUSALS = 4
_SAY_AGAIN_AFTER_S = 60.0
_log = logging.getLogger(__name__)


class RunLogger:
    """Write metrics, pictures and tags of one run; no call waits for the server.

    A thread sends the queued records every `interval_s`. Failed records are kept and retried with growing pauses, so an
    unavailable server does not stop the run. With a `home`, unsent records are also kept in the run's folder: a kill
    loses nothing that was recorded before the last `flush`, and the next logger of the run sends it. Messages for the
    user go to `tell`.

    After a restart from a checkpoint, the steps between it and the kill are repeated. Points and pictures that the run
    already has are dropped. Points of one metric must be recorded in order of steps.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        ref: RunRef,
        *,
        home: str | None = None,
        tell: Callable[[str], None] = _log.warning,
        interval_s: float = 2.0,
    ) -> None:
        """Start the thread.

        Args:
            ref: the run.
            home: URI of the run's folder, in which unsent records are kept.
            tell: function that receives lines for the user, without secrets.
            interval_s: seconds between two requests.
        """
        self._ref, self._tell, self._interval = ref, tell, interval_s
        self._outbox = Outbox(home, ref.run_id) if home else None
        self._points: deque[Point] = deque()
        self._files: deque[Picture | Tag] = deque()
        self._queues = threading.Lock()  # guards the two above; never held for longer than a copy
        self._folder = threading.Lock()  # guards the outbox
        self._loaded = self._outbox is None
        self._last: dict[str, int] | None = None  # newest recorded step of each metric
        self._pictures: set[tuple[str, int]] | None = None
        self._begun: dict[tuple[str, int], str] = {}
        self._batch = _POINTS_PER_REQUEST
        self._refusals = 0  # of the first record in its queue
        self._lost: list[str] = []
        self._wake, self._closing, self._given_up = threading.Event(), threading.Event(), threading.Event()
        self._away = False  # the last attempt failed
        self._progress = False  # something was sent since the last failure
        self._told_away, self._told_at = False, -_SAY_AGAIN_AFTER_S  # whether and when the user was told about this
        self._told_unkept = ""  # and why no record could be kept
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
        now = _now()
        points = [Point(key, float(value), step, now) for key, value in values.items()]
        with self._queues:
            self._points.extend(points)

    def system(self, step: int) -> None:
        """Record the load of this machine and its GPUs under the names that MLflow's UI expects, `system/...`."""
        if self._monitor is None:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            # MLflow's own thread is not started: it would end at the first failed request, and count its own steps.
            address = without_login(self._ref.tracking_uri)
            self._monitor = SystemMetricsMonitor(self._ref.run_id, tracking_uri=address)
        self._monitor.collect_metrics()
        self.metrics(step, {f"system/{name}": value for name, value in self._monitor.aggregate_metrics().items()})
        for monitor in self._monitor.monitors:
            monitor.clear_metrics()

    def image(self, key: str, array: np.ndarray, step: int) -> None:
        """Record a picture, (H, W, 3) or (H, W) uint8, which the UI shows as part of a series over steps."""
        if array.dtype != np.uint8:
            raise ValueError(f"image '{key}' is {array.dtype}; uint8 is expected")
        self._record(Picture(key, step, _now(), encode_png(array)))

    def tag(self, key: str, value: str) -> None:
        """Record a tag; a later value replaces it."""
        self._record(Tag(key, mask_text(value)[:5000]))  # the store's limit

    def flush(self, limit_s: float = 10.0) -> None:
        """Wait until all records are sent or, while the server is unavailable, kept: then a kill does not lose them."""
        self._wake.set()
        deadline = time.monotonic() + limit_s
        while self._left() and not self._away and time.monotonic() < deadline:
            time.sleep(0.01)
        self._keep()

    def close(self, limit_s: float = 20.0) -> None:
        """Send the remaining records for at most `limit_s`; those still unsent then are kept in the run's folder."""
        self._closing.set()
        self._wake.set()
        self._thread.join(limit_s)
        self._given_up.set()
        if not self._thread.is_alive() or not (left := self._left()):
            return
        end = "are lost" if self._outbox is None else f"wait in {self._outbox.folder}; the same command sends them"
        if unkept := self._keep():
            end = f"are lost: {unkept}"
        self._tell(
            f"the tracking server {self._ref.shown} is unavailable: {left} points and files of run {self._ref.run_id} "
            f"{end}"
        )

    def _record(self, item: Picture | Tag) -> None:
        with self._queues:
            self._files.append(item)

    def _left(self) -> int:
        with self._queues:
            return len(self._points) + len(self._files)

    def _keep(self) -> str:
        """Copy unsent records to the run's folder; return why that failed, or an empty text."""
        if self._outbox is None or not self._left():
            return ""
        try:
            with self._folder:
                with self._queues:
                    points, files = list(self._points), list(self._files)
                self._outbox.keep(points, files)
        except Exception as error:  # any error of its storage must not stop the run
            return f"{self._outbox.folder} cannot be written to: {_line(error)}"
        return ""

    def _work(self) -> None:
        """Send records and pause in turn, with shorter pauses after an error or at the end. The thread runs this."""
        pause = self._interval
        while not self._given_up.is_set():
            if not self._closing.is_set():
                self._wake.wait(pause)
                self._wake.clear()
            ending = self._closing.is_set()
            try:
                self._load()
                api = client(self._ref.tracking_uri)
                self._send_points(api)
                self._send_files(api)
            except Exception as error:
                self._away = True
                self._say_away(error, self._keep())
                # If some records arrive, the server is available: only consecutive failures make the pauses grow.
                pause = self._interval if self._progress else min(30.0, max(1.0, 2 * pause))
                self._progress = False
                self._given_up.wait(min(pause, 1.0) if ending else 0)
                continue
            self._say_back()
            pause, self._away = self._interval, False
            if ending and not self._left():
                return

    def _load(self) -> None:
        """Put records left by earlier loggers before those of this one."""
        if self._loaded or self._outbox is None:
            return
        with self._folder:
            points, files, problems = self._outbox.load()
            with self._queues:
                recorded = {item.name for item in self._files}  # and kept since this logger started
                self._points.extendleft(reversed(points))
                self._files.extendleft(reversed([item for item in files if item.name not in recorded]))
        self._loaded = True
        for problem in problems:
            self._tell(problem)

    def _send_points(self, api: MlflowClient) -> None:
        from mlflow.entities import Metric

        while True:
            with self._queues:
                batch = list(islice(self._points, self._batch))
            if not batch:
                return
            if self._last is None:
                self._last = _last_steps(api, self._ref.run_id)
            last, fresh = dict(self._last), []
            for point in batch:
                if point.step > last.get(point.key, -1):
                    fresh.append(Metric(point.key, point.value, point.timestamp, point.step))
                    last[point.key] = point.step
            try:
                if fresh:
                    api.log_batch(self._ref.run_id, metrics=fresh)
            except Exception as error:
                self._check_refusal(error)
                if len(batch) > 1:
                    self._batch = len(batch) // 2  # to find the record that is refused
                    continue
                self._lose(f"'{batch[0].key}' of step {batch[0].step}", error)
            self._batch = min(2 * self._batch, _POINTS_PER_REQUEST)
            self._refusals, self._progress, self._last = 0, True, last
            with self._folder:
                with self._queues:
                    for _ in batch:
                        self._points.popleft()
                    rest = len(self._points)
                if self._outbox is not None and not rest:
                    self._outbox.forget_points()

    def _send_files(self, api: MlflowClient) -> None:
        while True:
            with self._queues:
                item = self._files[0] if self._files else None
            if item is None:
                return
            try:
                self._send(api, item)
            except Exception as error:
                self._check_refusal(error)
                self._lose(str(item), error)
            self._refusals, self._progress = 0, True
            with self._folder:
                with self._queues:
                    self._files.popleft()
                if self._outbox is not None:
                    self._outbox.forget(item)

    def _send(self, api: MlflowClient, item: Picture | Tag) -> None:
        if isinstance(item, Tag):
            item.send(api, self._ref.run_id)
            return
        if self._pictures is None:
            self._pictures, self._begun = recorded_pictures(api, self._ref.run_id)
        if (where := (item.key, item.step)) not in self._pictures:
            item.send(api, self._ref.run_id, self._begun.get(where))
            self._pictures.add(where)

    def _check_refusal(self, error: Exception) -> None:
        """Raise an error again unless it is a refusal that was repeated often enough to be final."""
        if not is_final(error):
            raise error
        self._refusals += 1
        if self._refusals < _REFUSALS and self._batch == _POINTS_PER_REQUEST:
            raise error

    def _lose(self, what: str, error: Exception) -> None:
        """Report a record that the store refuses to the user and in the run."""
        self._tell(f"the tracking server {self._ref.shown} refused {what}, which is lost: {_line(error)}")
        self._lost.append(f"{what}: {_line(error)}")
        if not what.startswith(f"tag '{LOST}'"):
            self._record(Tag(LOST, "; ".join(self._lost)[:5000]))

    def _say_away(self, error: Exception, unkept: str) -> None:
        """Tell the user that the server is unavailable, and again if records cannot be kept, either."""
        if (self._told_away and unkept == self._told_unkept) or time.monotonic() - self._told_at < _SAY_AGAIN_AFTER_S:
            return
        kept = f"a kill would lose what it does not take, {unkept}" if unkept else "all is kept and sent later"
        self._tell(f"tracking at {self._ref.shown} fails; {kept}: {_line(error)}")
        self._told_away, self._told_unkept, self._told_at = True, unkept, time.monotonic()

    def _say_back(self) -> None:
        if self._told_away:
            self._tell(f"tracking at {self._ref.shown} works again; what was kept is sent")
            self._told_away = False


def _now() -> int:
    return int(time.time() * 1000)


def _line(error: Exception) -> str:
    """Return the first line of an error, without secrets; for a silent server, only that it does not answer."""
    if (status := refused_status(error)) is not None:
        return f"it answers with status {status} each time"
    if is_silence(error):
        return "it does not answer"
    return reason_of(error)


def _last_steps(api: MlflowClient, run_id: str) -> dict[str, int]:
    """Return the newest recorded step of each metric."""
    return {metric.key: metric.step for metric in api.get_run(run_id).data.to_proto().metrics}
