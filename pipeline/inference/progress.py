"""The progress of a restoration: its current step, the share of its work that is done, and the remaining time.

A restoration is split into pieces of known work (`work.py`), and each piece counts its finished work. The cost of a
piece may become clearer later (the number of windows depends on the kernel). Then its expectation is replaced, but the
reported share never falls. A listener can cancel the restoration by raising. Nothing is kept between two restorations.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_UNFINISHED = 0.999  # largest share before the end is reported
_FIRST_SHARE = 0.05  # share of the work after which a remaining time is reported


class Part(NamedTuple):
    """Hold a finished window of the restored image."""

    top: int  # HR pixels
    left: int
    pixels: np.ndarray  # (h, w, 3) float32 in [0, 1]


class Step(NamedTuple):
    """Hold the progress of a restoration."""

    stage: str  # the unit of the count: place, kernel step, window, ...
    done: int  # number of finished units
    total: int
    share: float  # share of the whole work, never falling, 1 at the end
    part: Part | None = None  # the window that was just finished, if the image has several

    def text(self) -> str:
        """Return the step as text for the user.

        >>> Step("window", 3, 9, 0.5).text()
        'window 4 of 9'
        """
        return f"{self.stage} {min(self.done + 1, self.total)} of {self.total}"


Listener = Callable[[Step], None]


class Meter:
    """Add up the pieces of one restoration and notify a listener; without a listener, nothing is counted."""

    def __init__(self, listener: Listener | None = None) -> None:
        self._listener, self._pieces = listener, list[Piece]()
        self._done = self._share = 0.0
        self._now = "", 0, 0

    @property
    def listens(self) -> bool:
        """Tell whether anybody wants to know."""
        return self._listener is not None

    def piece(self, work: float = 0.0, label: tuple[str, int, int] | None = None) -> Piece:
        """Add a piece of work.

        Args:
            work: expected work, in the unit of all pieces.
            label: stage, done and total to report for the whole piece; None if the piece reports them itself.
        """
        made = Piece(self, work, label)
        if self._listener is not None:
            self._pieces.append(made)
        return made

    def finish(self) -> None:
        """Report that all work is done."""
        stage, _, total = self._now
        if self._listener is not None:
            self._listener(Step(stage, total, total, 1.0))

    def _tell(self, part: Part | None = None) -> None:
        if self._listener is None:
            return
        whole = self._done + sum(piece.left for piece in self._pieces)
        if whole > 0:
            self._share = max(self._share, min(self._done / whole, _UNFINISHED))
        self._listener(Step(*self._now, self._share, part))


class Piece:
    """Count the work of one part of a restoration."""

    def __init__(self, meter: Meter, work: float, label: tuple[str, int, int] | None) -> None:
        self._meter, self._label, self.left = meter, label, work

    @property
    def listens(self) -> bool:
        """Tell whether anybody wants to know."""
        return self._meter.listens

    def expect(self, work: float) -> None:
        """Replace the work that is still expected."""
        if self.listens:
            self.left = work

    def at(self, stage: str, done: int, total: int, part: Part | None = None) -> None:
        """Report the current step.

        Args:
            stage: unit of the count.
            done: number of finished units.
            total: number of all units.
            part: part of the image that was just finished.
        """
        if self.listens:
            self._meter._now = self._label or (stage, done, total)
            self._meter._tell(None if self._label else part)

    def add(self, work: float) -> None:
        """Count finished work."""
        if self.listens:
            self._meter._done += work
            self.left = max(0.0, self.left - work)
            self._meter._tell()

    def split(self, stage: str, count: int, work: Callable[[int], float]) -> list[Piece]:
        """Split the piece into pieces named `stage` 1 of `count`, 2 of `count`, ...

        Args:
            stage: unit of the count.
            count: number of pieces.
            work: function from a piece's index, from 0, to its expected work.
        """
        if not self.listens:
            return [self] * count
        works = [work(number) for number in range(count)]
        self.left = max(0.0, self.left - sum(works))
        return [self._meter.piece(expected, (stage, number, count)) for number, expected in enumerate(works)]

    def end(self) -> None:
        """Drop expected work that turned out to be unnecessary."""
        if self.listens:
            self.left = 0.0


NOBODY = Meter().piece()  # has no listener


class RemainingTime:
    """Estimate the remaining time from the time of the finished work."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._started = clock, clock()

    def seconds(self, share: float) -> float | None:
        """Return the remaining seconds; None while too little work is done.

        Args:
            share: share of the work that is done.
        """
        if share < _FIRST_SHARE:
            return None
        return (self._clock() - self._started) * (1 - share) / share
