"""The whole way from images on disk to torch tensors in the training process, on the same images and cores.

Ours: shards -> Ray Data tasks -> batches. The field's: a torch DataLoader that decodes a whole 2K PNG for each patch.
And webdataset + DataLoader doing what our tasks do, which shows what Ray Data costs. Wall-clock ratios need an idle
machine; CPU seconds a sample do not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import webdataset
from ray.data._internal.execution.execution_callback import ExecutionCallback
from scipy import ndimage
from torch.utils.data import DataLoader, Dataset, IterableDataset

from kernels_bank import KernelBank
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.data import feed
from pipeline.data.feed import Feed
from pipeline.data.manifest import read_manifest
from pipeline.data.mixture import open_mixture
from pipeline.data.pace import Paced
from pipeline.data.photographs import copy_photographs
from pipeline.data.samples import degrade_draws, draw
from pipeline.data.task import read_segment
from pipeline.images.decode import decode_image, decode_tile
from pipeline.images.encode import encode_png

pytestmark = pytest.mark.timeout(1800)  # a busy machine takes its time
CORES = os.cpu_count() or 1
BATCH, SCALE = 16, 2


@dataclass(frozen=True)
class World:
    """Photographs at the size of DIV2K's, their shards, and a bank."""

    images: Path
    config: RunConfig
    results: dict[str, tuple[float, float]]  # loader -> samples/s, CPU ms a sample


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    from kernels_bank.generate import build_bank
    from kernels_bank.runtime.cluster import connect
    from kernels_bank.spec import KernelBankSpec
    from pipeline.data.manifest import ShardSettings
    from pipeline.data.shards import make_shards

    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # its pool of threads would hang the forked workers of the DataLoaders
    folder = tmp_path_factory.mktemp("world")
    small, _ = copy_photographs(folder / "photographs")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for i in range(24):
        image = decode_image(sorted(small.iterdir())[i % 4].read_bytes())
        large = cv2.resize(np.roll(image, 37 * i, axis=1), (2040, 1356), interpolation=cv2.INTER_CUBIC)
        grain = random.integers(-2, 3, large.shape, dtype=np.int16)
        (folder / "images" / f"{i:02d}.png").write_bytes(encode_png(np.clip(large + grain, 0, 255).astype(np.uint8)))
    connect(min_cpus=CORES)
    make_shards(str(folder / "images"), str(folder / "shards"), ShardSettings(shard_mib=16))
    build_bank(KernelBankSpec(gaussian=2000, motion=0), str(folder / "bank"))
    config = RunConfig(
        name="bench",
        data=DataConfig(shards=str(folder / "shards"), bank=str(folder / "bank"), sigma=(0.0, 0.05)),
        train=TrainConfig(steps=1, batch_size=BATCH),
    )
    results: dict[str, tuple[float, float]] = {}
    yield World(folder / "images", config, results)
    import ray

    ray.shutdown()
    report(results)


def report(results: dict[str, tuple[float, float]]) -> None:
    """The ratios, once all loaders were measured."""
    if len(results) == 3:
        (ours, our_cpu), (field, field_cpu), (plain, plain_cpu) = (
            results[name] for name in ("Ray Data", "field", "webdataset")
        )
        print(f"\nours / field's loader: {ours / field:.1f}x samples/s, {field_cpu / our_cpu:.1f}x less CPU a sample")
        print(f"Ray Data / webdataset: {our_cpu / plain_cpu - 1:+.0%} CPU a sample, {ours / plain:.2f}x samples/s")


class FieldsDataset(Dataset):
    """One patch for each decoded photograph, as the published training code does it."""

    def __init__(self, images: Path, bank: np.ndarray) -> None:
        self.files, self.bank = sorted(images.iterdir()), bank

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        random = np.random.default_rng(index)
        image = cv2.imread(str(self.files[index % len(self.files)]), cv2.IMREAD_COLOR_RGB)
        top, left = (int(random.integers(side - 96)) for side in image.shape[:2])
        hr = image[top : top + 96, left : left + 96].astype(np.float32) / 255
        kernel = self.bank[random.integers(len(self.bank))]
        lr = ndimage.convolve(hr, kernel[..., None], mode="wrap")[::SCALE, ::SCALE]
        lr = lr + random.standard_normal(lr.shape).astype(np.float32) * np.float32(0.02)
        return tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in (lr, hr, kernel))


class SameWork(IterableDataset):
    """What a data task does, with webdataset in place of Ray Data; without hash, count and position."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        data = self.config.data
        bank = KernelBank.open(data.bank).kernels
        urls = [f"{data.shards}/{shard.name}" for shard in read_manifest(data.shards).train] * 1000
        source = webdataset.WebDataset(urls, shardshuffle=False, workersplitter=webdataset.split_by_worker)
        held, order = [], np.random.default_rng(0)
        for sample in source:
            pixels = decode_tile(sample["png"])
            held += [
                draw(pixels, sample["__key__"], patch, epoch=0, seed=0, data=data, bank=bank)
                for patch in range(data.patches_per_tile)
            ]
            if len(held) < 720:  # what a window of two shards holds
                continue
            mixed = [held[i] for i in order.permutation(len(held))]
            held = mixed[720:]
            for first in range(0, 720, BATCH):
                chunk = mixed[first : first + BATCH]
                yield {
                    "lr": torch.from_numpy(degrade_draws(chunk, SCALE, "none").lr),
                    "hr": torch.from_numpy(np.stack([d.hr for d in chunk])),
                    "kernel": torch.from_numpy(np.stack([d.kernel for d in chunk])),
                    "sigma": torch.tensor([d.sigma for d in chunk]),
                }


def measure(benchmark, tree_use: type, world: World, name: str, consume: Callable[[], int]) -> None:
    """`consume` reads some batches and returns their number; start-up and prefetching are its own business."""
    rates, costs = [], []

    def once() -> None:
        with tree_use() as used:
            samples = consume() * BATCH
        rates.append(samples / used.wall)
        costs.append(used.cpu / samples * 1e3)

    benchmark.pedantic(once, rounds=3, warmup_rounds=1)
    world.results[name] = (float(np.median(rates[1:])), float(np.median(costs[1:])))
    benchmark.extra_info["ratios"] = {
        f"a sample's CPU from disk to tensor, against {other}": cost / world.results[name][1]
        for other, (_, cost) in world.results.items()
        if name == "Ray Data" and other != name
    }
    print(f"\n{name}: {world.results[name][0]:.0f} samples/s, {world.results[name][1]:.2f} ms CPU a sample")


def take(batches: Iterator, count: int) -> int:
    for _ in range(count):
        next(batches)
    return count


GROUP = pytest.mark.benchmark(group=f"images to tensors of the training process, {CORES} cores")


@GROUP
def test_field_loader(benchmark, world: World, tree_use: type) -> None:
    dataset = FieldsDataset(world.images, KernelBank.open(world.config.data.bank).kernels)
    batches = iter(DataLoader(dataset, batch_size=BATCH, num_workers=CORES, shuffle=False))
    measure(benchmark, tree_use, world, "field", lambda: take(batches, 8))


@GROUP
def test_webdataset_with_the_same_work(benchmark, world: World, tree_use: type) -> None:
    batches = iter(DataLoader(SameWork(world.config), batch_size=None, num_workers=CORES))
    measure(benchmark, tree_use, world, "webdataset", lambda: take(batches, 450))


@GROUP
def test_ray_data(benchmark, world: World, tree_use: type) -> None:
    """From the first row of the plan to the last batch: Ray Data works far ahead, so a part of a run tells nothing."""
    feed = Feed(world.config, stages=(), workers=1, rank=0)
    measure(benchmark, tree_use, world, "Ray Data", lambda: sum(1 for _ in feed.batches(450, cpus=CORES)))


@pytest.mark.benchmark(group="CPU of the reading process while the feed is ahead of it")
@pytest.mark.parametrize("way", ["Ray's own", "paced (ours)"])
def test_a_feed_that_is_ahead(benchmark, world: World, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training's thread shares one interpreter with Ray Data's scheduler."""
    if way == "Ray's own":
        monkeypatch.setattr(Paced, "on_execution_step", ExecutionCallback.on_execution_step)
    monkeypatch.setattr(feed, "_STORE_SHARE", 0.01)
    batches = Feed(world.config, stages=(), workers=1, rank=0).batches(4000, cpus=CORES)
    next(batches)
    time.sleep(10)  # until the feed is as far ahead as it may be
    before = time.process_time()
    benchmark.pedantic(lambda: time.sleep(5), rounds=1)
    benchmark.extra_info["share"] = share = (time.process_time() - before) / 5
    print(f"\n{way}: {share:.0%} of a core")


@pytest.mark.benchmark(group="a window of two shards as blocks of the object store")
def test_block_bytes(benchmark, world: World) -> None:
    from ray.data.block import BlockAccessor

    from pipeline.data import plan

    manifest = read_manifest(world.config.data.shards)
    names = tuple(shard.name for shard in manifest.train[:2])
    window = plan.Segment(0, names, 0, 8 * sum(shard.samples for shard in manifest.train[:2]))
    shards = open_mixture(world.config.data).window(window)

    def to_blocks() -> list:
        rows = read_segment(window, 0, config=world.config, shards=shards, batch_size=BATCH)
        return [BlockAccessor.batch_to_block(columns) for columns in rows]

    blocks = benchmark.pedantic(to_blocks, rounds=2)
    size = sum(block.nbytes for block in blocks) / len(window)
    print(f"\nobject store: {size / 1024:.1f} KiB a sample; the decoded tile would be {480 * 480 * 3 / 1024:.0f}")
