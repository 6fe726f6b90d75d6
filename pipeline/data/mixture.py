"""The opened shard sets that a run learns from: one, or several with weights."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from kernels_bank.runtime import storage, uris
from pipeline.config import DataConfig
from pipeline.data import plan
from pipeline.data.manifest import Manifest, Shard, read_manifest

_SPARES = 4  # number of spare shards for a window that is damaged as a whole


class PlacedShard(NamedTuple):
    """Hold the place of a shard, and how often the run has read it before."""

    uri: str  # of the shard's set
    shard: Shard
    turn: int  # how often the set was read before; the draws for a tile depend on it

    @property
    def name(self) -> str:
        """Return the shard's URI."""
        return uris.join(self.uri, self.shard.name)


class Window(NamedTuple):
    """Hold all that a data task needs to know about its shards, so that no task needs a whole manifest."""

    shards: tuple[PlacedShard, ...]
    spare: tuple[PlacedShard, ...]

    def to_json(self) -> str:
        """Return the window as text, for a row of the plan."""
        return json.dumps([[(s.uri, s.shard.model_dump(), s.turn) for s in part] for part in self])

    @classmethod
    def from_json(cls, text: str) -> Window:
        """Parse the text of `to_json`."""
        parts = ((PlacedShard(u, Shard.model_validate(s), t) for u, s, t in part) for part in json.loads(text))
        shards, spare = (tuple(part) for part in parts)
        return cls(shards, spare)


@dataclass(frozen=True)
class ShardSet:
    """Hold a shard set with its manifest and weight."""

    uri: str
    weight: Fraction  # how often an epoch shows each of its tiles
    manifest: Manifest


@dataclass(frozen=True)
class Mixture:
    """Hold the shard sets of a run, in the order of the config."""

    sets: tuple[ShardSet, ...]

    @property
    def samples(self) -> int:
        """Count the training tiles of all sets, each once."""
        return sum(one.manifest.samples for one in self.sets)

    @property
    def tiles_an_epoch(self) -> float:
        """Count the tiles that an epoch shows, averaged over epochs."""
        return float(sum(one.weight * one.manifest.samples for one in self.sets))

    @property
    def shards_an_epoch(self) -> float:
        """Count the shards that an epoch reads, averaged over epochs."""
        return float(sum(one.weight * len(one.manifest.train) for one in self.sets))

    @property
    def digest(self) -> str:
        """Return the identity of the samples and their weights; for a single set, that of its samples."""
        if self._is_single:
            return self.sets[0].manifest.digest
        return storage.digest_of([[one.manifest.digest, str(one.weight)] for one in self.sets])

    def stream(self, *, seed: int, patches_per_tile: int, shards_per_window: int) -> Iterator[plan.Segment]:
        """Yield all windows of all epochs; the stream is infinite.

        Args:
            seed: seed of the run.
            patches_per_tile: samples taken from a tile each time it is shown.
            shards_per_window: shards whose samples are mixed.
        """
        sizes = {"seed": seed, "patches_per_tile": patches_per_tile, "shards_per_window": shards_per_window}
        if self._is_single:
            return plan.stream(self.sets[0].manifest.train, **sizes)
        return plan.mixed_stream([(one.manifest.train, one.weight) for one in self.sets], **sizes)

    def window(self, segment: plan.Segment) -> Window:
        """Look up the shards of a segment, and a few spares in case all of them are damaged."""
        chosen = [plan.Label.parse(label, segment.epoch) for label in segment.shards]
        names = {(label.set, label.name) for label in chosen}
        shards = tuple(PlacedShard(self.sets[s].uri, self._by_name[s][name], turn) for s, name, turn in chosen)
        spare = []
        for number, one in enumerate(self.sets):
            first = one.manifest.train[: len(names) + _SPARES]
            spare += [PlacedShard(one.uri, shard, 0) for shard in first if (number, shard.name) not in names]
        return Window(shards, tuple(spare[:_SPARES]))

    @property
    def _is_single(self) -> bool:
        return len(self.sets) == 1 and self.sets[0].weight == 1

    @functools.cached_property
    def _by_name(self) -> list[dict[str, Shard]]:
        return [{shard.name: shard for shard in one.manifest.train} for one in self.sets]


def open_mixture(data: DataConfig) -> Mixture:
    """Open the shard sets of a run. Raises ArtefactError for a set that is missing, damaged or of another version."""
    return Mixture(
        tuple(ShardSet(one.uri, Fraction(str(one.weight)), read_manifest(one.uri)) for one in data.shard_sets)
    )
