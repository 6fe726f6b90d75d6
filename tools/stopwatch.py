"""Where this thread's CPU seconds go, by stage: what a stage inside another takes is counted as the inner one's."""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Path = tuple[str, ...]


class Point(NamedTuple):
    """Name a function whose time is looked at."""

    owner: Any  # the class or module that holds it
    name: str
    stage: str
    least: Callable[..., float] | None = None  # (result, *args) -> seconds that the machine allows at least


@dataclass
class Stopwatch:
    """Hold CPU seconds by the path of stages that were open, outermost first."""

    seconds: Counter[Path] = field(default_factory=Counter)
    least: Counter[Path] = field(default_factory=Counter)  # what a roofline allows, where a point says so

    def __post_init__(self) -> None:
        self._path: Path = ()
        self._since = time.thread_time()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what the block takes under `name`, but for the stages inside it."""
        outer = self._path
        self._turn_to((*outer, name))
        try:
            yield
        finally:
            self._turn_to(outer)

    @contextmanager
    def watch(self, points: Sequence[Point]) -> Iterator[None]:
        """Count each point's function as a stage while the block runs."""
        with ExitStack() as restored:
            for point in points:
                held = inspect.getattr_static(point.owner, point.name)
                restored.callback(setattr, point.owner, point.name, held)
                timed = self._timed(point)
                of_class = isinstance(held, classmethod | staticmethod)
                setattr(point.owner, point.name, staticmethod(timed) if of_class else timed)
            yield

    def total(self, *names: str, inside: str | None = None) -> float:
        """Sum the seconds of paths whose innermost stage is one of `names`; `inside`: only where that is open too."""
        return self._sum(self.seconds, names, inside)

    def bound(self, *names: str) -> float:
        """Sum the seconds that a roofline allows for the paths whose innermost stage is one of `names`."""
        return self._sum(self.least, names, None)

    @staticmethod
    def _sum(counted: Counter[Path], names: tuple[str, ...], inside: str | None) -> float:
        return sum(value for path, value in counted.items() if path[-1] in names and (not inside or inside in path))

    def _timed(self, point: Point) -> Callable[..., Any]:
        function = getattr(point.owner, point.name)

        def timed(*args: object, **kwargs: object) -> object:
            with self.stage(point.stage):
                result = function(*args, **kwargs)
            if point.least:
                self.least[(*self._path, point.stage)] += point.least(result, *args)
            return result

        return timed

    def _turn_to(self, path: Path) -> None:
        now = time.thread_time()
        if self._path:
            self.seconds[self._path] += now - self._since
        self._path, self._since = path, now
