"""The digest of a shard set, which is taken piece by piece."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import ArtefactError
from pipeline.data.manifest import Manifest, Shard, check_files, content_digest

SHARDS = tuple(Shard(name=f"train-{i:06d}.tar", samples=i + 1, bytes=i, sha256=f"{i:064x}") for i in range(7))


@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_it_is_the_digest_of_the_two_lists(cut: int):
    train, validation = SHARDS[:cut], SHARDS[cut:]
    lists = [[shard.model_dump() for shard in split] for split in (train, validation)]
    assert content_digest(train, validation) == storage.digest_of(lists)


def test_an_older_sets_digest_is_still_its_own():
    assert content_digest(SHARDS[:2], SHARDS[2:3]).startswith("157219dd")


@pytest.mark.parametrize("bytes_left", [None, 0, 5, 7])
def test_a_finished_set_that_lacks_a_tar_is_not_finished(tmp_path: Path, bytes_left: int | None):
    for shard in SHARDS:
        (tmp_path / shard.name).write_bytes(b"x" * shard.bytes)
    manifest = Manifest.model_construct(train=SHARDS[:4], validation=SHARDS[4:])
    check_files(str(tmp_path), manifest)
    last = tmp_path / SHARDS[-1].name
    last.unlink() if bytes_left is None else last.write_bytes(b"x" * bytes_left)
    with pytest.raises(ArtefactError, match=r"train-000006\.tar: gone, or not of its 6 bytes; delete manifest\.json"):
        check_files(str(tmp_path), manifest)
