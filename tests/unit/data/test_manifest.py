"""The digest of a shard set, which is taken piece by piece."""

from __future__ import annotations

import pytest

from kernels_bank.runtime import storage
from pipeline.data.manifest import Shard, content_digest

SHARDS = tuple(Shard(name=f"train-{i:06d}.tar", samples=i + 1, bytes=i, sha256=f"{i:064x}") for i in range(7))


@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_it_is_the_digest_of_the_two_lists(cut: int):
    train, validation = SHARDS[:cut], SHARDS[cut:]
    lists = [[shard.model_dump() for shard in split] for split in (train, validation)]
    assert content_digest(train, validation) == storage.digest_of(lists)


def test_an_older_sets_digest_is_still_its_own():
    assert content_digest(SHARDS[:2], SHARDS[2:3]).startswith("157219dd")
