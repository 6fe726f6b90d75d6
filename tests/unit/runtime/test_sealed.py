"""A manifest is read as it was written or not at all, whatever bit of it has changed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernels_bank import KernelBankSpec
from kernels_bank import store as bank
from kernels_bank.codec_quality import Loss
from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import ArtefactError
from kernels_bank.runtime.sealed import unsealed, write_sealed
from pipeline.data import manifest as shards

DIGEST = "0123456789abcdef" * 4


def of_shards() -> shards.Manifest:
    train = (shards.Shard(name="train-000000.tar", samples=3, bytes=10240, sha256=DIGEST),)
    return shards.Manifest(
        settings=shards.ShardSettings(tile=64, drop_flat=0.1),
        source_digest=DIGEST,
        train=train,
        images=4,
        skipped=(shards.Skipped(name="b.png", reason="not an image"),),
        digest=shards.content_digest(train, ()),
    )


def of_bank() -> bank.Manifest:
    spec = KernelBankSpec(gaussian=3, motion=0, size=9)
    record = bank.ShardRecord(**bank.plan(spec)[0].model_dump(), bytes=512, sha256=DIGEST, content=DIGEST)
    losses = [Loss(components=2, explained_variance=1 / 3, psnr={"gaussian": 31.4})]
    codec = bank.CodecRecord(sha256=DIGEST, digest=DIGEST, components=2, explained_variance=0.1 + 0.2, losses=losses)
    digest = bank.bank_digest(9, [record])
    return bank.Manifest(spec=spec, digest=digest, shards=[record], codec=codec, made_with={"numpy": "2.4.0"})


@pytest.mark.parametrize(
    ("written", "write", "read"),
    [
        (of_shards, shards.write_manifest, shards.read_manifest),
        (of_bank, bank.write_manifest, bank.read_manifest),
    ],
    ids=["shards", "bank"],
)
def test_no_flipped_bit_is_overlooked(
    tmp_path: Path, written: Callable[[], Any], write: Callable[..., None], read: Callable[[str], Any]
):
    write(str(tmp_path), written())
    assert read(str(tmp_path)) == written()
    file = tmp_path / "manifest.json"
    whole, read_all_the_same = file.read_bytes(), 0
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << (at * 5 + 2) % 8]) + whole[at + 1 :])
        with contextlib.suppress(ArtefactError):
            assert read(str(tmp_path)) == written()  # the last digit of a float may be another and its value the same
            read_all_the_same += 1
    assert read_all_the_same < 5


def test_what_an_earlier_version_wrote_is_read(tmp_path: Path):
    storage.write_json(tmp_path / "manifest.json", of_shards().model_dump())
    assert shards.read_manifest(str(tmp_path)) == of_shards()


@pytest.mark.parametrize("value", [{}, {"a": [1, 2.5, None, {"b": "\u00fc\ud800"}]}, {"b": 1e300, "a": -0.0}])
def test_any_object_comes_back(tmp_path: Path, value: dict[str, Any]):
    write_sealed(tmp_path / "a.json", value)
    found = json.loads((tmp_path / "a.json").read_text())
    assert unsealed(found, "a.json") == value
    with pytest.raises(ArtefactError, match="damaged"):
        unsealed(found | {"c": 0}, "a.json")
