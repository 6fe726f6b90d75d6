"""Storage that fails every third request and cuts connections in the middle: not one sample lost or doubled."""

from __future__ import annotations

import http.client
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
import torch

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import ArtefactError
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.data import feed
from pipeline.data.feed import Feed
from pipeline.data.manifest import read_manifest, read_shard
from pipeline.data.tiles import read_samples

pytestmark = pytest.mark.flow


class FlakyProxy(BaseHTTPRequestHandler):
    """Forwards to `upstream`; of the GETs of objects every third fails: a 503, or half the body and a cut."""

    upstream = ""
    gets = 0
    cuts = 0

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def _forward(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        connection = http.client.HTTPConnection(self.upstream)
        connection.request(self.command, self.path, self.rfile.read(length), dict(self.headers))
        answer = connection.getresponse()
        body = answer.read()
        cut = False
        if self.command == "GET" and ".tar" in self.path:
            FlakyProxy.gets += 1
            if FlakyProxy.gets % 3 == 1:
                FlakyProxy.cuts += 1
                if FlakyProxy.cuts % 2:
                    self.send_error(503)
                    return
                cut = True
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"connection", "transfer-encoding", "server", "date"}:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward  # noqa: N815 - the names http.server looks up


@pytest.fixture
def flaky(s3: str, shards: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, _ in storage.list_files(shards):
        storage.write_bytes(f"s3://test/flaky/{name}", storage.read_bytes(storage.join(shards, name)))
    FlakyProxy.upstream, FlakyProxy.gets, FlakyProxy.cuts = urlsplit(s3).netloc, 0, 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), FlakyProxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("flaky")
def test_every_sample_comes_once():
    manifest = read_manifest("s3://test/flaky")
    for _ in range(3):
        keys = [s.key for shard in manifest.train for s in read_samples(read_shard("s3://test/flaky", shard))]
        assert len(keys) == len(set(keys)) == manifest.samples
    assert FlakyProxy.cuts >= 4


@pytest.mark.usefixtures("flaky")
def test_the_feed_gives_an_epoch_as_if_nothing_had_happened(shards: str, bank: str, monkeypatch: pytest.MonkeyPatch):
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
    assert FlakyProxy.cuts >= 2


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


def test_a_file_of_any_size_is_one_request(large: bytes, flaky: None):
    """A request is a round trip, and on the test server a copy of the whole object."""
    FlakyProxy.gets = 1  # the next one does not fail
    assert storage.read_bytes("s3://test/flaky/large.tar") == large
    assert FlakyProxy.gets == 2
