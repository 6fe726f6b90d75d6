"""CPU seconds of this thread by stage; the time of nested stages counts only for the inner stage."""

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
    """Name a function whose time is measured."""

    owner: Any  # the class or module of the function
    name: str
    stage: str
    least: Callable[..., float] | None = None  # (result, *args) -> least seconds of this machine


@dataclass
class Stopwatch:
    """Hold CPU seconds by the path of open stages, outermost first."""

    seconds: Counter[Path] = field(default_factory=Counter)
    least: Counter[Path] = field(default_factory=Counter)  # least seconds by a roofline, for points that have one

    def __post_init__(self) -> None:
        self._path: Path = ()
        self._since = time.thread_time()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block under `name`, except that of nested stages."""
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
        """Sum the seconds of paths whose innermost stage is one of `names`; `inside`: only paths that contain it."""
        return self._sum(self.seconds, names, inside)

    def bound(self, *names: str) -> float:
        """Sum the least seconds by a roofline of paths whose innermost stage is one of `names`."""
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
