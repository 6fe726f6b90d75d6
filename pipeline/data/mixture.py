"""The shard sets that a run learns from, opened: one, or several with weights."""

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

_SPARES = 4  # shards that stand in for a window that is damaged as a whole


class PlacedShard(NamedTuple):
    """Say where a shard lies, and for which time a run reads it."""

    uri: str  # of its set
    shard: Shard
    turn: int  # how often the set was read before: what is drawn for a tile depends on it

    @property
    def name(self) -> str:
        """Return its URI."""
        return uris.join(self.uri, self.shard.name)


class Window(NamedTuple):
    """Hold all that a data task has to know of its shards, so that no task needs a whole manifest."""

    shards: tuple[PlacedShard, ...]
    spare: tuple[PlacedShard, ...]

    def to_json(self) -> str:
        """Return it as text, for a row of the plan."""
        return json.dumps([[(s.uri, s.shard.model_dump(), s.turn) for s in part] for part in self])

    @classmethod
    def from_json(cls, text: str) -> Window:
        """Read what `to_json` wrote."""
        parts = ((PlacedShard(u, Shard.model_validate(s), t) for u, s, t in part) for part in json.loads(text))
        shards, spare = (tuple(part) for part in parts)
        return cls(shards, spare)


@dataclass(frozen=True)
class ShardSet:
    """Hold one set with its manifest."""

    uri: str
    weight: Fraction  # how often an epoch shows each of its tiles
    manifest: Manifest


@dataclass(frozen=True)
class Mixture:
    """Hold the sets of a run, in the order of the config."""

    sets: tuple[ShardSet, ...]

    @property
    def samples(self) -> int:
        """Count the training tiles of all sets, each once."""
        return sum(one.manifest.samples for one in self.sets)

    @property
    def tiles_an_epoch(self) -> float:
        """Count the tiles that an epoch shows, on the average over epochs."""
        return float(sum(one.weight * one.manifest.samples for one in self.sets))

    @property
    def shards_an_epoch(self) -> float:
        """Count the shards that an epoch reads, on the average over epochs."""
        return float(sum(one.weight * len(one.manifest.train) for one in self.sets))

    @property
    def digest(self) -> str:
        """Return the identity of the samples and their weights; of a single set that of its samples."""
        if self._is_single:
            return self.sets[0].manifest.digest
        return storage.digest_of([[one.manifest.digest, str(one.weight)] for one in self.sets])

    def stream(self, *, seed: int, patches_per_tile: int, shards_per_window: int) -> Iterator[plan.Segment]:
        """Yield all windows of all epochs, without end.

        Args:
            seed: of the run.
            patches_per_tile: samples taken from a tile each time it is shown.
            shards_per_window: shards whose samples are mixed.
        """
        sizes = {"seed": seed, "patches_per_tile": patches_per_tile, "shards_per_window": shards_per_window}
        if self._is_single:
            return plan.stream(self.sets[0].manifest.train, **sizes)
        return plan.mixed_stream([(one.manifest.train, one.weight) for one in self.sets], **sizes)

    def window(self, segment: plan.Segment) -> Window:
        """Look up the shards of a segment, and a few others in case that all of these are damaged."""
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
    """Open the shard sets of a run. Raises ArtefactError for one that is not there, damaged or of another version."""
    return Mixture(
        tuple(ShardSet(one.uri, Fraction(str(one.weight)), read_manifest(one.uri)) for one in data.shard_sets)
    )
