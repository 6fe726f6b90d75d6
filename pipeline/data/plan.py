"""The samples of each training worker and their order: a pure function, so that a run can resume exactly.

The stream of a run is a sequence of windows. A window is a few shards, in an order drawn anew each epoch, whose
samples (tile, patch) are mixed with one another. Windows are assigned to the workers in turn. Each worker reads its
own, and a checkpoint only has to store a position in its stream.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from pipeline.data.manifest import Shard
from pipeline.frozen import Frozen
from pipeline.seeds import rng


class Label(NamedTuple):
    """Name a shard of one of several sets, and how often it was read before.

    >>> str(Label(1, "train-000002.tar", 3))
    '1:train-000002.tar:3'
    """

    set: int
    name: str
    turn: int

    def __str__(self) -> str:
        return f"{self.set}:{self.name}:{self.turn}"

    @classmethod
    def parse(cls, text: str, epoch: int) -> Label:
        """Parse a label; a plain file name is a shard of a run's only set, read once per epoch."""
        number, *rest = text.split(":")
        return cls(int(number), rest[0], int(rest[1])) if rest else cls(0, text, epoch)


@dataclass(frozen=True)
class Segment:
    """Name the samples `start` to `stop` of one window's mixed order."""

    epoch: int
    shards: tuple[str, ...]  # file names, or labels if there are several sets
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Stage(Frozen):
    """Hold a stretch of the run with a constant number of workers, each of which consumed this many samples."""

    workers: int
    consumed: int


def stream(shards: Sequence[Shard], *, seed: int, patches_per_tile: int, shards_per_window: int) -> Iterator[Segment]:
    """Yield all windows of all epochs; the stream is infinite. Every epoch holds every patch of every tile once.

    Args:
        shards: shards of the set.
        seed: seed of the run.
        patches_per_tile: samples taken from a tile in an epoch.
        shards_per_window: shards whose samples are mixed.
    """
    for epoch in itertools.count():
        order = rng(seed, epoch=epoch, key="shards", purpose="order").permutation(len(shards))
        for first in range(0, len(order), shards_per_window):
            chosen = [shards[i] for i in order[first : first + shards_per_window]]
            samples = sum(shard.samples for shard in chosen) * patches_per_tile
            yield Segment(epoch, tuple(shard.name for shard in chosen), 0, samples)


def mixed_stream(
    sets: Sequence[tuple[Sequence[Shard], Fraction]], *, seed: int, patches_per_tile: int, shards_per_window: int
) -> Iterator[Segment]:
    """Yield all windows of all epochs of several sets; the stream is infinite. Shards are named by labels.

    A set of n shards and weight w is read repeatedly, each time in a newly drawn order. Epoch e takes positions e w n
    to (e + 1) w n of this sequence: with weight 2 every tile twice, with weight 1/3 a third of the shards, each
    exactly once in three epochs. Within an epoch the shards of all sets are shuffled.

    Args:
        sets: shards and weight of each set.
        seed: seed of the run.
        patches_per_tile: samples taken from a tile each time it is shown.
        shards_per_window: shards whose samples are mixed.
    """
    for epoch in itertools.count():
        chosen: list[tuple[Label, int]] = []
        for number, (shards, weight) in enumerate(sets):
            first, last = (math.floor(place * weight * len(shards)) for place in (epoch, epoch + 1))
            for place in range(first, last):
                turn, at = divmod(place, len(shards))
                shard = shards[_order(seed, turn, number, len(shards))[at]]
                chosen.append((Label(number, shard.name, turn), shard.samples))
        order = rng(seed, epoch=epoch, key="shards", purpose="order").permutation(len(chosen))
        for start in range(0, len(order), shards_per_window):
            window = [chosen[i] for i in order[start : start + shards_per_window]]
            samples = sum(count for _, count in window) * patches_per_tile
            yield Segment(epoch, tuple(str(label) for label, _ in window), 0, samples)


@functools.lru_cache(maxsize=64)
def _order(seed: int, turn: int, number: int, count: int) -> np.ndarray:
    """Return the order in which a set's shards are read for the n-th time."""
    return rng(seed, epoch=turn, key=f"shards of set {number}", purpose="order").permutation(count)


def remaining(segments: Iterator[Segment], stage: Stage) -> Iterator[Segment]:
    """Yield the rest of a stream after a stage has consumed its share, without repeats or gaps."""
    budget = [stage.consumed] * stage.workers
    for position, segment in enumerate(segments):
        worker = position % stage.workers
        taken = min(budget[worker], len(segment))
        budget[worker] -= taken
        if taken < len(segment):
            yield replace(segment, start=segment.start + taken)


def for_worker(segments: Iterator[Segment], stages: Sequence[Stage], workers: int, rank: int) -> Iterator[Segment]:
    """Yield the stream of one worker after the earlier stages of a run.

    With the same number of workers, each worker continues its own stream, bit for bit as without an interruption. With
    another number, the rest is assigned anew.

    Args:
        segments: the stream of all workers.
        stages: samples consumed before.
        workers: present number of workers.
        rank: rank of this worker.
    """
    unchanged = bool(stages) and stages[-1].workers == workers
    for stage in stages[:-1] if unchanged else stages:
        segments = remaining(segments, stage)
    mine = itertools.islice(segments, rank, None, workers)
    return remaining(mine, Stage(workers=1, consumed=stages[-1].consumed)) if unchanged else mine


def advance(stages: Sequence[Stage], workers: int, samples: int) -> tuple[Stage, ...]:
    """Return the stages after every one of `workers` has consumed `samples` more.

    >>> advance((Stage(workers=2, consumed=8),), workers=2, samples=4)
    (Stage(workers=2, consumed=12),)
    """
    if stages and stages[-1].workers == workers:
        return (*stages[:-1], Stage(workers=workers, consumed=stages[-1].consumed + samples))
    return (*stages, Stage(workers=workers, consumed=samples))


def in_stretches(segments: Iterator[Segment], samples: int, stretch: int) -> Iterator[list[Segment]]:
    """Take `samples` samples from the front of a stream, in lists of `stretch` samples and a shorter last one."""
    rest: Segment | None = None
    while samples > 0:
        missing = min(stretch, samples)
        samples -= missing
        taken = []
        while missing > 0:
            segment, rest = rest or next(segments), None
            if len(segment) > missing:
                rest = replace(segment, start=segment.start + missing)
                segment = replace(segment, stop=segment.start + missing)
            taken.append(segment)
            missing -= len(segment)
        yield taken


def mixed_order(segment: Segment, tiles: int, patches_per_tile: int, *, seed: int) -> np.ndarray:
    """Return tile and patch number of each sample of a segment, (n, 2) int, in the segment's order.

    Args:
        segment: samples to list.
        tiles: number of tiles in the window.
        patches_per_tile: samples taken from a tile in an epoch.
        seed: seed of the run.
    """
    key = "+".join(segment.shards)
    order = rng(seed, epoch=segment.epoch, key=key, purpose="mix").permutation(tiles * patches_per_tile)
    chosen = order[segment.start : segment.stop]
    return np.stack([chosen // patches_per_tile, chosen % patches_per_tile], axis=1)


def scale_of(scales: Sequence[int], batch: int, *, seed: int) -> int:
    """Return the scale of a run's n-th batch, the same on every worker."""
    return int(rng(seed, epoch=0, key=str(batch), purpose="scale").choice(scales))
