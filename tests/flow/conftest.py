"""Real components: a local Ray cluster, a small bank, shards of the bundled photographs, an S3 server over HTTP."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster(s3: str) -> Iterator[None]:
    """A local Ray for the whole session, stopped at its end; its processes inherit the S3 server's variables."""
    from kernels_bank.runtime.cluster import connect

    connect(min_cpus=4)
    yield
    import ray

    ray.shutdown()


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four real photographs."""
    pytest.importorskip("skimage")
    from pipeline.data.photographs import copy_photographs

    return copy_photographs(tmp_path_factory.mktemp("photographs"))[0]


@pytest.fixture(scope="session")
def bank(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bank of 200 Gaussian and 200 motion kernels, 21 x 21."""
    from kernels_bank.generate import build_bank
    from kernels_bank.spec import KernelBankSpec

    uri = str(tmp_path_factory.mktemp("bank"))
    build_bank(KernelBankSpec(gaussian=200, motion=200), uri)
    return uri


@pytest.fixture(scope="session")
def shards(cluster: None, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The photographs as four shards of small tiles."""
    from pipeline.data.manifest import ShardSettings
    from pipeline.data.shards import make_shards

    uri = str(tmp_path_factory.mktemp("shards"))
    make_shards(str(photographs), uri, ShardSettings(tile=160, shard_mib=0.5))
    return uri


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """An S3 server over HTTP with a bucket `test`; the AWS variables of this process point at it."""
    import boto3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in (*settings, "AWS_CA_BUNDLE")}
    os.environ.update(settings)
    os.environ.pop("AWS_CA_BUNDLE", None)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.25)
        boto3.client("s3").create_bucket(Bucket="test")
        yield endpoint
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
