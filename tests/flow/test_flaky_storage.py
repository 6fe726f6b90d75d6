"""Storage that fails a third of the requests or cuts their connections: not one sample lost or doubled."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from kernels_bank.runtime import folders, storage, uris
from kernels_bank.runtime.errors import ArtefactError
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.data import feed
from pipeline.data.feed import Feed
from pipeline.data.manifest import read_manifest, read_shard
from pipeline.data.tiles import read_samples
from tests.helpers.fault_proxy import Fault, FaultProxy

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("cluster")]


@pytest.fixture
def flaky(s3: str, shards: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    for name, _ in folders.list_files(shards):
        storage.write_bytes(f"s3://test/flaky/{name}", storage.read_bytes(uris.join(shards, name)))
    faults = [
        Fault("status", share=0.17, methods="GET", path=r"\.tar"),
        Fault("cut", share=0.2, methods="GET", path=r"\.tar"),
    ]
    with FaultProxy(s3, faults, seed=2) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def test_every_sample_comes_once(flaky: FaultProxy):
    manifest = read_manifest("s3://test/flaky")
    for _ in range(3):
        keys = [s.key for shard in manifest.train for s in read_samples(read_shard("s3://test/flaky", shard))]
        assert len(keys) == len(set(keys)) == manifest.samples
    assert min(flaky.counts["status"], flaky.counts["cut"]) >= 1


def test_the_feed_gives_an_epoch_as_if_nothing_had_happened(
    flaky: FaultProxy, shards: str, bank: str, monkeypatch: pytest.MonkeyPatch
):
    config = RunConfig(
        name="flaky",
        data=DataConfig(shards=shards, bank=bank, patch=48, patches_per_tile=2, shards_per_window=1),
        train=TrainConfig(steps=1, batch_size=8),
    )
    count = read_manifest(shards).samples * 2 // 8
    calm = list(Feed(config, stages=(), workers=1, rank=0).batches(count, cpus=1))
    stormy_data = config.data.model_copy(update={"shards": "s3://test/flaky"})
    read_row, endpoint = feed._read_row, os.environ["AWS_ENDPOINT_URL"]

    def through_the_proxy(row: dict, **settings: object) -> Iterator[dict]:
        # Ray's processes have the variables of the time they were started.
        before, os.environ["AWS_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"], endpoint
        yield from read_row(row, **settings)
        os.environ["AWS_ENDPOINT_URL"] = before

    monkeypatch.setattr(feed, "_read_row", through_the_proxy)
    stormy = Feed(config.model_copy(update={"data": stormy_data}), stages=(), workers=1, rank=0)
    for after, before in zip(stormy.batches(count, cpus=1), calm, strict=True):
        assert after.keys == before.keys
        assert torch.equal(after.lr, before.lr)
    assert flaky.counts["status"] + flaky.counts["cut"] >= 2


@pytest.mark.usefixtures("flaky")
def test_a_missing_shard_is_named(shards: str):
    missing = read_manifest(shards).train[0]
    with pytest.raises(ArtefactError, match=rf"s3://test/empty/{missing.name}: no such file"):
        read_shard("s3://test/empty", missing)


@pytest.fixture
def large(s3: str) -> bytes:
    """The content of `large.tar` on S3, written past the proxy: it is to be asked for before `flaky`."""
    content = bytes(range(256)) * 2**15
    storage.write_bytes("s3://test/flaky/large.tar", content)
    return content


def test_a_file_of_any_size_is_one_request(large: bytes, flaky: FaultProxy):
    """A request is a round trip, and on the test server a copy of the whole object."""
    flaky.faults = []
    assert storage.read_bytes("s3://test/flaky/large.tar") == large
    assert flaky.counts["GET"] == 1
