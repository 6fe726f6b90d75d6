"""What a data task gives: every sample of its segment in order, whatever is damaged, one scale a batch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kernels_bank.runtime.errors import ArtefactError
from pipeline.config import RunConfig
from pipeline.data import plan
from pipeline.data.manifest import read_manifest
from pipeline.data.mixture import open_mixture
from pipeline.data.task import read_segment
from pipeline.data.tiles import TileSample, read_samples, write_samples

WINDOW = ("train-000000.tar", "train-000001.tar")
WHOLE = plan.Segment(0, WINDOW, 0, 12)


def columns(config: RunConfig, segment: plan.Segment = WHOLE, position: int = 0) -> dict[str, np.ndarray]:
    blocks = list(read(config, segment, position))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def read(config: RunConfig, segment: plan.Segment = WHOLE, position: int = 0) -> Sequence[dict[str, np.ndarray]]:
    shards = open_mixture(config.data).window(segment)
    return list(read_segment(segment, position, config=config, shards=shards, batch_size=4))


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_every_patch_of_every_tile_of_the_window_comes_once(config: RunConfig):
    found = columns(config)
    assert len(set(found["key"])) == len(found["key"]) == 2 * 3 * 2
    assert not found["bad"].astype(bool).any()
    names = {key.rsplit("/", 1)[0] for key in found["key"]}
    assert len(names) == 6
    assert found["hr"].shape == (12, 3, 48, 48)


def test_a_segment_in_two_parts_gives_the_bits_of_the_whole(config: RunConfig):
    whole = columns(config)
    for middle in (1, 5, 8):
        parts = [
            columns(config, plan.Segment(0, WINDOW, 0, middle)),
            columns(config, plan.Segment(0, WINDOW, middle, 12), position=middle),
        ]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in whole}
        assert same(whole, joined)


def test_blocks_never_mix_the_scales_of_two_batches(config: RunConfig):
    blocks = read(config, position=6)
    assert [len(block["key"]) for block in blocks] == [2, 4, 4, 2]
    for batch, block in enumerate(blocks, start=1):
        scale = plan.scale_of((2, 3), batch, seed=0)
        assert set(block["scale"]) == {scale}
        assert {len(image) for image in block["lr"]} == {3 * (48 // scale) ** 2 * 4}


def test_a_damaged_shard_loses_no_position_and_leaves_the_others_as_they_are(config: RunConfig, shard_set: Path):
    sound = columns(config)
    flip_a_byte(shard_set / WINDOW[0])
    found = columns(config)
    assert len(found["key"]) == 12
    assert set(found["bad"]) == {"", f"{shard_set}/{WINDOW[0]}"}
    kept = found["bad"] == ""
    assert kept.sum() == 6
    # Scale and company apart, a sound sample has the same bits as before.
    for name in ("hr", "kernel", "sigma", "key", "lr"):
        assert np.array_equal(found[name][kept], sound[name][kept])
    # The places are filled from several tiles, not from one of them over and over.
    assert len({hr.tobytes() for hr in found["hr"][~kept]}) == 6


def test_a_window_that_is_damaged_as_a_whole_is_filled_from_another(config: RunConfig, shard_set: Path):
    for name in WINDOW:
        flip_a_byte(shard_set / name)
    found = columns(config)
    assert len(found["key"]) == len(set(found["key"])) == 12
    assert set(found["bad"]) == {f"{shard_set}/{name}" for name in WINDOW}


def test_a_damaged_tile_is_named(config: RunConfig, shard_set: Path):
    """A tile that was damaged before the shard was hashed."""
    tiles = list(read_samples((shard_set / WINDOW[0]).read_bytes()))
    tiles[1] = TileSample(tiles[1].key, tiles[1].image[:100], tiles[1].json)
    stream = io.BytesIO()
    write_samples(iter(tiles), stream)
    rewrite(shard_set, WINDOW[0], stream.getvalue())
    found = columns(config)
    assert sorted(set(found["bad"])) == ["", f"{shard_set}/{WINDOW[0]}: {tiles[1].key}"]
    assert (found["bad"] != "").sum() == config.data.patches_per_tile
    assert len(set(found["key"])) == 12


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Replace a shard and make the manifest believe it."""
    import hashlib

    from kernels_bank.runtime import storage
    from pipeline.data.manifest import MANIFEST, content_digest

    (folder / name).write_bytes(data)
    manifest = read_manifest(str(folder))
    train = tuple(
        s.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()}) if s.name == name else s
        for s in manifest.train
    )
    changed = {"train": train, "digest": content_digest(train, manifest.validation)}
    storage.write_json(folder / MANIFEST, manifest.model_copy(update=changed).model_dump())


def test_a_missing_shard_is_an_error_that_names_it(config: RunConfig, shard_set: Path):
    (shard_set / WINDOW[1]).unlink()
    with pytest.raises(ArtefactError, match=rf"{WINDOW[1]}: no such file"):
        columns(config)


def test_nothing_readable_at_all_is_an_error(config: RunConfig, shard_set: Path):
    for path in shard_set.glob("train-*.tar"):
        flip_a_byte(path)
    with pytest.raises(ArtefactError, match=r"none of these shards can be read: .*train-000004"):
        columns(config)


def test_online_kernels_do_not_come_from_the_bank(config: RunConfig):
    online = config.model_copy(update={"data": config.data.model_copy(update={"kernel_source": "online"})})
    bank, fresh = columns(config), columns(online)
    assert same({"hr": bank["hr"], "key": bank["key"]}, {"hr": fresh["hr"], "key": fresh["key"]})
    assert len({kernel.tobytes() for kernel in fresh["kernel"]} & {kernel.tobytes() for kernel in bank["kernel"]}) == 0
    assert same(fresh, columns(online))
