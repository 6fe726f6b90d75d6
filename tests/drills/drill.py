"""What a drill is: a small function with a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.drills.trial import Trial


@dataclass(frozen=True)
class Drill:
    """`act(trial, moment)` does it once; what is wrong it notes in the trial."""

    name: str
    what: str  # for the table: what happens
    where: str  # and to what
    moments: tuple[str, ...]
    act: Callable[[Trial, str], None]
