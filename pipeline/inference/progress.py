"""What a restoration is doing, how much of its work is done, and how long the rest will take.

A restoration is cut into pieces of known work (`work.py`), and each piece counts what it has done of it. What a piece
will cost may become clearer later (the number of windows depends on the kernel): then its expectation is replaced, and
the share of the whole that is done never falls. A listener that raises ends the restoration: that is how it is
cancelled. Nothing is kept between two restorations.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_UNFINISHED = 0.999  # at most, until the end is said
_FIRST_SHARE = 0.05  # of the work that is done before a remaining time is said


class Part(NamedTuple):
    """Hold a finished window of the restored image."""

    top: int  # HR pixels
    left: int
    pixels: np.ndarray  # (h, w, 3) float32 in [0, 1]


class Step(NamedTuple):
    """Say how far a restoration is."""

    stage: str  # what is counted: place, kernel step, window, ...
    done: int  # of them
    total: int
    share: float  # of the whole work, never falling, 1 at the end
    part: Part | None = None  # that has just been finished, where the image has several windows

    def text(self) -> str:
        """Return it for people.

        >>> Step("window", 3, 9, 0.5).text()
        'window 4 of 9'
        """
        return f"{self.stage} {min(self.done + 1, self.total)} of {self.total}"


Listener = Callable[[Step], None]


class Meter:
    """Add up the pieces of one restoration and tell a listener; without one, nothing is counted."""

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
            work: that is expected of it, in the unit of the others.
            label: stage, done and total that are said of all of it; None: it says them itself.
        """
        made = Piece(self, work, label)
        if self._listener is not None:
            self._pieces.append(made)
        return made

    def finish(self) -> None:
        """Say that all is done."""
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
        """Replace what is still expected of it."""
        if self.listens:
            self.left = work

    def at(self, stage: str, done: int, total: int, part: Part | None = None) -> None:
        """Say what it is doing.

        Args:
            stage: what is counted.
            done: how many of them are.
            total: how many there are.
            part: of the image, that has just been finished.
        """
        if self.listens:
            self._meter._now = self._label or (stage, done, total)
            self._meter._tell(None if self._label else part)

    def add(self, work: float) -> None:
        """Count work that was done."""
        if self.listens:
            self._meter._done += work
            self.left = max(0.0, self.left - work)
            self._meter._tell()

    def split(self, stage: str, count: int, work: Callable[[int], float]) -> list[Piece]:
        """Cut it into pieces that are called `stage` 1 of `count`, 2 of `count`, ...

        Args:
            stage: what each of them is.
            count: how many.
            work: that is expected of each, by its number from 0.
        """
        if not self.listens:
            return [self] * count
        works = [work(number) for number in range(count)]
        self.left = max(0.0, self.left - sum(works))
        return [self._meter.piece(expected, (stage, number, count)) for number, expected in enumerate(works)]

    def end(self) -> None:
        """Drop what was expected and turned out not to be needed."""
        if self.listens:
            self.left = 0.0


NOBODY = Meter().piece()  # listens


class RemainingTime:
    """Foretell how long the rest takes, from how long what is done took."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._started = clock, clock()

    def seconds(self, share: float) -> float | None:
        """Return the seconds that are left; None while too little is done to say.

        Args:
            share: of the work, that is done.
        """
        if share < _FIRST_SHARE:
            return None
        return (self._clock() - self._started) * (1 - share) / share
