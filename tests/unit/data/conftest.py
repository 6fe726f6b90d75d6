"""A small shard set written without Ray, and a bank that needs no files."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kernels_bank import sample_gaussian
from kernels_bank.runtime import storage
from kernels_bank.spec import KernelBankSpec
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.data import task, validation
from pipeline.data.manifest import MANIFEST, Manifest, Shard, ShardSettings, content_digest
from pipeline.data.tiles import cut, write_samples
from pipeline.model_config import ModelConfig

SHARDS, TILES = 5, 3


def write_shard(folder: Path, name: str, seed: int, tiles: int = TILES) -> Shard:
    image = np.random.default_rng(seed).integers(0, 256, (64, 64 * tiles, 3), dtype=np.uint8)
    stream = io.BytesIO()
    sha256 = hashlib.sha256(f"{name} {seed // 1000}".encode() if seed >= 1000 else name.encode()).hexdigest()
    count = write_samples(cut(image, 64, name=name, sha256=sha256), stream)
    (folder / name).write_bytes(stream.getvalue())
    digest = hashlib.sha256(stream.getvalue()).hexdigest()
    return Shard(name=name, samples=count, bytes=len(stream.getvalue()), sha256=digest)


@pytest.fixture
def shard_set(tmp_path: Path) -> Path:
    """Five training shards and two for validation, three tiles of 64 x 64 each."""
    return write_set(tmp_path, 0)


@pytest.fixture
def other_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many of other pictures."""
    return write_set(tmp_path_factory.mktemp("other"), 1000)


def write_set(folder: Path, seed: int) -> Path:
    train = tuple(write_shard(folder, f"train-{i:06d}.tar", seed + i) for i in range(SHARDS))
    held_out = tuple(write_shard(folder, f"validation-{i:06d}.tar", seed + 100 + i) for i in range(2))
    manifest = Manifest(
        settings=ShardSettings(tile=64),
        source_digest="",
        train=train,
        validation=held_out,
        images=7,
        digest=content_digest(train, held_out),
    )
    storage.write_json(folder / MANIFEST, manifest.model_dump())
    return folder


@pytest.fixture
def config(shard_set: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    bank = SimpleNamespace(
        kernels=sample_gaussian(50, 9, rng=np.random.default_rng(0)),
        spec=KernelBankSpec(gaussian=50, motion=0, size=9),
    )
    for module in (task, validation):
        monkeypatch.setattr(module, "open_bank", lambda uri: bank)
    return RunConfig(
        name="task",
        model=ModelConfig(scales=(2, 3)),
        data=DataConfig(shards=str(shard_set), bank="", patch=48, patches_per_tile=2, sigma=(0.0, 0.1)),
        train=TrainConfig(steps=1, batch_size=4),
    )
