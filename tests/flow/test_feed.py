"""The feed through Ray Data: every sample once, in the planned order, and the very next one after a restart."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from kernels_bank.runtime import folders, storage, uris
from kernels_bank.runtime.errors import ArtefactError
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.data import feed, pace
from pipeline.data.batch import Batch
from pipeline.data.feed import Feed
from pipeline.data.manifest import read_manifest
from pipeline.data.plan import Stage
from pipeline.degrade import degrade
from pipeline.model_config import ModelConfig

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("cluster")]


@pytest.fixture
def config(shards: str, bank: str) -> RunConfig:
    return RunConfig(
        name="feed",
        model=ModelConfig(scales=(2, 3)),
        data=DataConfig(shards=shards, bank=bank, patch=48, patches_per_tile=3, sigma=(0.0, 0.0)),
        train=TrainConfig(steps=1, batch_size=8),
    )


def read(config: RunConfig, count: int, stages=(), workers: int = 1, rank: int = 0) -> list[Batch]:
    return list(Feed(config, stages=stages, workers=workers, rank=rank).batches(count, cpus=1))


def equal(one: Batch, other: Batch) -> bool:
    tensors = all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("lr", "hr", "kernel", "sigma"))
    return tensors and (one.scale, one.keys) == (other.scale, other.keys)


def test_an_epoch_holds_every_patch_of_every_tile_once_over_two_workers(config: RunConfig):
    samples = read_manifest(config.data.shards).samples * config.data.patches_per_tile
    both = [read(config, samples // 4, workers=2, rank=rank) for rank in range(2)]
    keys = Counter(key for batches in both for batch in batches for key in batch.keys)
    # The two workers read two epochs between them, up to the rest of a batch each.
    assert max(keys.values()) <= 3
    assert sum(keys.values()) >= 2 * samples - 2 * 8
    assert len(keys) == samples


def test_batches_are_what_the_degradation_says(config: RunConfig):
    batches = read(config, 6)
    assert {batch.scale for batch in batches} == {2, 3}
    for batch in batches:
        assert batch.hr.shape == (8, 3, 48, 48)
        assert torch.allclose(degrade(batch.hr, batch.kernel, batch.scale), batch.lr, atol=1e-6)


@pytest.mark.parametrize("consumed", [1, 5])
def test_the_resumed_stream_is_bit_equal(config: RunConfig, consumed: int):
    undisturbed = read(config, 8)
    stages = Feed(config, stages=(), workers=1, rank=0).after(consumed)
    resumed = read(config, 8 - consumed, stages=stages)
    assert len(resumed) == 8 - consumed
    assert all(equal(a, b) for a, b in zip(undisturbed[consumed:], resumed, strict=True))


def test_stretches_join_without_a_seam(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    undisturbed = read(config, 20)
    monkeypatch.setattr(feed, "_STRETCH", 0.1)  # several Ray Datasets a window
    assert all(equal(a, b) for a, b in zip(undisturbed, read(config, 20), strict=True))


def test_with_another_number_of_workers_the_rest_of_the_epoch_comes_once(config: RunConfig):
    samples = read_manifest(config.data.shards).samples * config.data.patches_per_tile
    stages: tuple[Stage, ...] = ()
    seen: list[str] = []
    # One worker for two batches, then two of them, then one to the end of the epoch.
    for workers, batches in ((1, 2), (2, 3), (1, samples // 8 - 5)):
        for rank in range(workers):
            for batch in read(config, batches, stages=stages, workers=workers, rank=rank):
                seen += batch.keys
        stages = Feed(config, stages=stages, workers=workers, rank=0).after(batches)
    assert len(seen) == samples
    assert set(Counter(seen).values()) == {1}


def test_a_damaged_shard_is_tolerated_within_the_bound_and_named_beyond_it(
    config: RunConfig, shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for name, _ in folders.list_files(shards):
        (tmp_path / name).write_bytes(storage.read_bytes(uris.join(shards, name)))
    (tmp_path / "train-000001.tar").write_bytes(b"\0" * 10240)
    manifest = read_manifest(shards)
    count = manifest.samples * config.data.patches_per_tile // config.train.batch_size

    def damaged(bound: float) -> RunConfig:
        data = config.data.model_copy(update={"shards": str(tmp_path), "max_bad_fraction": bound})
        return config.model_copy(update={"data": data})

    batches = read(damaged(0.6), count)
    assert len(batches) == count
    assert {name for batch in batches for name in batch.bad} == {f"{tmp_path}/train-000001.tar"}
    lost = manifest.train[1].samples * config.data.patches_per_tile
    assert lost - config.train.batch_size <= sum(batch.replaced for batch in batches) <= lost
    assert caplog.messages == [f"{tmp_path}/train-000001.tar: damaged, other tiles take its place"]
    with pytest.raises(ArtefactError, match=rf"^{manifest.train[1].samples} of {manifest.samples} .*train-000001\.tar"):
        read(damaged(0.01), count)


def test_a_missing_shard_is_one_line_that_names_it(config: RunConfig, shards: str, tmp_path: Path):
    (tmp_path / "manifest.json").write_bytes(storage.read_bytes(uris.join(shards, "manifest.json")))
    empty = config.model_copy(update={"data": config.data.model_copy(update={"shards": str(tmp_path)})})
    with pytest.raises(ArtefactError, match=r"^\S*/train-\d{6}\.tar: no such file$"):
        read(empty, 1)


def test_a_feed_that_is_ahead_leaves_the_interpreter_to_the_training(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
):
    turns: list[float] = []
    step = pace.Paced.on_execution_step

    def counted(self: pace.Paced, executor: StreamingExecutor) -> None:
        turns.append(time.monotonic())
        step(self, executor)

    monkeypatch.setattr(pace.Paced, "on_execution_step", counted)
    monkeypatch.setattr(feed, "_STORE_SHARE", 1e-4)  # a few batches: then tasks wait for the reader
    batches = Feed(config, stages=(), workers=1, rank=0).batches(400, cpus=1)
    next(batches)
    time.sleep(3)
    ahead = [turn for turn in turns if turn > turns[-1] - 1]
    assert 0 < len(ahead) <= 51  # without a pace hundreds
    assert sum(1 for _ in batches) == 399


def test_batches_go_to_the_device_of_the_worker(config: RunConfig):
    """The meta device stands in for a card: with values other than tensors in a batch Ray moves none of it."""
    (batch,) = Feed(config, stages=(), workers=1, rank=0).batches(1, cpus=1, device="meta")
    assert {getattr(batch, name).device.type for name in ("lr", "hr", "kernel", "sigma")} == {"meta"}
    assert batch.hr.dtype == torch.float32
