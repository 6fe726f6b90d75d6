"""The validation samples: all of them, once, the same whoever reads them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from kernels_bank.runtime.errors import ArtefactError
from pipeline.config import RunConfig
from pipeline.data.batch import Batch
from pipeline.data.validation import validation_batches


def samples(batches: list[Batch]) -> dict[tuple[str, int], tuple[bytes, ...]]:
    """(key, scale) -> the sample's bits."""
    return {
        (key, b.scale): tuple(getattr(b, name)[i].numpy().tobytes() for name in ("lr", "hr", "kernel", "sigma"))
        for b in batches
        for i, key in enumerate(b.keys)
    }


def count(batches: list[Batch]) -> Counter[tuple[str, int]]:
    return Counter((key, b.scale) for b in batches for key in b.keys)


def test_every_held_out_tile_comes_once_for_every_scale(config: RunConfig):
    found = count(validation_batches(config, batch_size=4))
    assert len({key for key, _ in found}) == 6
    assert {scale for _, scale in found} == {2, 3}
    assert set(found.values()) == {1}
    assert len(found) == 12


@pytest.mark.parametrize("workers", [2, 4, 7])
def test_workers_share_the_samples_without_dropping_or_changing_any(config: RunConfig, workers: int):
    alone = samples(validation_batches(config))
    shares = [validation_batches(config, rank=rank, workers=workers, batch_size=2) for rank in range(workers)]
    assert sum((count(share) for share in shares), Counter()) == Counter(alone.keys())
    assert {name: bits for share in shares for name, bits in samples(share).items()} == alone


def test_neither_the_runs_seed_nor_other_scales_change_them(config: RunConfig):
    alone = samples(validation_batches(config))
    assert samples(validation_batches(config.model_copy(update={"seed": 9}))) == alone
    only_3 = config.model_copy(update={"model": config.model.model_copy(update={"scales": (3,)})})
    assert samples(validation_batches(only_3)) == {k: v for k, v in alone.items() if k[1] == 3}


def test_a_limit_takes_the_same_tiles_for_any_number_of_workers(config: RunConfig):
    alone = samples(validation_batches(config, limit=4))
    assert len(alone) == 8
    shares = [validation_batches(config, limit=4, rank=rank, workers=3) for rank in range(3)]
    assert {name: bits for share in shares for name, bits in samples(share).items()} == alone


def test_no_validation_split_gives_none(config: RunConfig, shard_set: Path):
    from kernels_bank.runtime import storage
    from pipeline.data.manifest import MANIFEST, content_digest, read_manifest

    manifest = read_manifest(str(shard_set))
    without = {"validation": (), "digest": content_digest(manifest.train, ())}
    storage.write_json(shard_set / MANIFEST, manifest.model_copy(update=without).model_dump())
    assert validation_batches(config) == []


def test_a_damaged_validation_shard_is_an_error(config: RunConfig, shard_set: Path):
    path = shard_set / "validation-000001.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtefactError, match=r"validation-000001\.tar: damaged"):
        validation_batches(config)


def test_reading_them_leaves_the_threads_of_training_alone(config: RunConfig):
    before = torch.get_num_threads()
    validation_batches(config)
    assert torch.get_num_threads() == before
