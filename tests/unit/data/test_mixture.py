"""Several shard sets as one: what a run learns from them, bit by bit."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.config import DataConfig, RunConfig
from pipeline.data import plan
from pipeline.data.mixture import Window, open_mixture
from pipeline.data.task import read_segment
from pipeline.data.validation import validation_batches
from tests.unit.data.test_task import flip_a_byte


def mixed(config: RunConfig, *sets: tuple[Path, float]) -> RunConfig:
    listed = [{"uri": str(uri), "weight": weight} for uri, weight in sets]
    data = DataConfig.model_validate(config.data.model_dump() | {"shards": listed})
    return config.model_copy(update={"data": data})


def keys(config: RunConfig, epochs: int) -> list[tuple[int, str, bytes]]:
    """Epoch, key and pixels of every sample."""
    mixture, found = open_mixture(config.data), []
    for segment in mixture.stream(seed=0, patches_per_tile=2, shards_per_window=2):
        if segment.epoch >= epochs:
            return found
        window = Window.from_json(mixture.window(segment).to_json())
        for block in read_segment(segment, 0, config=config, shards=window, batch_size=4):
            found += [(segment.epoch, k, hr.tobytes()) for k, hr in zip(block["key"], block["hr"], strict=True)]
    raise AssertionError("unreachable")


def test_a_set_alone_is_what_it_was_before_there_were_mixtures(config: RunConfig, shard_set: Path):
    alone = open_mixture(config.data)
    assert alone.digest == alone.sets[0].manifest.digest
    listed = open_mixture(mixed(config, (shard_set, 1)).data)
    sizes = {"seed": 0, "patches_per_tile": 2, "shards_per_window": 2}
    streams = [one.stream(**sizes) for one in (alone, listed)]
    assert [next(streams[0]) for _ in range(9)] == [next(streams[1]) for _ in range(9)]
    assert listed.digest == alone.digest


def test_weight_two_shows_every_patch_twice_with_other_pixels(config: RunConfig, shard_set: Path):
    found = keys(mixed(config, (shard_set, 2)), epochs=1)
    assert len(found) == 2 * len({key for _, key, _ in found}) == 2 * 5 * 3 * 2
    assert len({pixels for _, _, pixels in found}) == len(found)


def test_sets_come_in_the_shares_of_their_weights(config: RunConfig, shard_set: Path, other_set: Path):
    found = keys(mixed(config, (shard_set, 0.2), (other_set, 1)), epochs=5)
    ours = {key for _, key, _ in keys(config, epochs=1)}
    assert sum(key in ours for _, key, _ in found) == 5 * 3 * 2
    assert sum(key not in ours for _, key, _ in found) == 5 * 5 * 3 * 2


def test_the_digest_tells_sets_and_weights_apart(config: RunConfig, shard_set: Path, other_set: Path):
    mixtures = [[(shard_set, 1), (other_set, 1)], [(shard_set, 1), (other_set, 2)], [(shard_set, 2)], [(shard_set, 1)]]
    digests = [open_mixture(mixed(config, *sets).data).digest for sets in mixtures]
    assert len(set(digests)) == 4
    assert open_mixture(mixed(config, (shard_set, 0.1)).data).sets[0].weight == Fraction(1, 10)


def test_a_damaged_window_is_filled_from_any_set(config: RunConfig, shard_set: Path, other_set: Path):
    for shard in open_mixture(config.data).sets[0].manifest.train:
        flip_a_byte(shard_set / shard.name)
    both = mixed(config, (shard_set, 1), (other_set, 1))
    segment = plan.Segment(0, ("0:train-000000.tar:0", "0:train-000001.tar:0"), 0, 12)
    window = open_mixture(both.data).window(segment)
    assert len(window.spare) == 4
    found = np.concatenate([b["bad"] for b in read_segment(segment, 0, config=both, shards=window, batch_size=4)])
    assert set(found) == {f"{shard_set}/train-00000{i}.tar" for i in (0, 1)}


def test_all_sets_are_validated_on(config: RunConfig, shard_set: Path, other_set: Path):
    one, both = (validation_batches(c) for c in (config, mixed(config, (shard_set, 1), (other_set, 3))))
    assert sum(len(batch.keys) for batch in both) == 2 * sum(len(batch.keys) for batch in one)


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([], "name a shard set"),
        (["a", "a"], "a is there twice"),
        ([{"uri": "a", "weight": 0}], "greater than 0"),
        ([{"weight": 1}], "uri"),
    ],
)
def test_a_wrong_list_is_refused(shards: list[object], message: str):
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate({"shards": shards, "bank": "b"})


def test_a_set_may_be_named_by_its_uri_alone():
    assert DataConfig(shards=["a"], bank="b").shards == "a"  # type: ignore[arg-type]
    sets = DataConfig(shards=["a", {"uri": "b", "weight": 0.5}], bank="b").shard_sets  # type: ignore[list-item]
    assert [(one.uri, one.weight) for one in sets] == [("a", 1.0), ("b", 0.5)]
