"""Progress of long work: a live bar on a terminal, a line per interval in a log, both with rate and ETA, and gauges."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from kernels_bank.runtime import gauges

_LOG_INTERVAL_S = 10.0


class Progress:
    """Show a bar: `with Progress("shards", total=40, unit="shard") as bar: ... bar.advance(1, note="12.3 MiB/s")`."""

    def __init__(self, label: str, total: int, unit: str = "item") -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done, self._first, self._begun, self._note = 0, 0, 0.0, ""
        self._started = self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._bar = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = RichProgress(*columns, console=console)
            self._task = self._bar.add_task(label, total=total, rate="", note="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        else:
            self._line(final=kind is None)

    def start_at(self, done: int) -> None:
        """Count `done` items as finished earlier, so that they do not affect the rate."""
        self._done = self._first = done
        self._started = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count finished items; `note` replaces the text at the end of the line."""
        self._done, self._begun, self._note = self._done + count, 0.0, note
        gauges.set_gauge(gauges.DONE, self._done, {"stage": self._label})
        gauges.set_gauge(gauges.TOTAL, self._total, {"stage": self._label})
        self._show()

    def within(self, share: float, note: str = "") -> None:
        """Set the finished share of the next item, 0 to 1, which counts for rate and ETA but not yet as an item."""
        self._begun, self._note = share, note
        self._show()

    def _show(self) -> None:
        if self._bar:
            completed = self._done + self._begun
            self._bar.update(self._task, completed=completed, rate=self._rate_text(), note=self._note)
        elif time.monotonic() - self._last_line >= _LOG_INTERVAL_S:
            self._line()

    def _rate(self) -> float:
        return (self._done + self._begun - self._first) / max(time.monotonic() - self._started, 1e-6)

    def _rate_text(self) -> str:
        return f"{self._rate():.3g} {self._unit}/s"

    def _line(self, *, final: bool = False) -> None:
        self._last_line = time.monotonic()
        elapsed = self._last_line - self._started
        rate = self._rate()
        # After a resume there is no rate before the first item.
        eta = f"ETA {(self._total - self._done - self._begun) / rate:.0f} s" if rate > 0 else "ETA unknown"
        tail = f"in {elapsed:.1f} s" if final else eta
        line = f"{self._label}: {self._done}/{self._total} {self._unit} ({self._rate_text()}, {tail}) {self._note}"
        print(line.rstrip(), file=sys.stderr, flush=True)
