"""What comes from S3 is right or an error, through a proxy that cuts bodies whose headers promise the whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest

from kernels_bank.runtime import storage
from tests.helpers.fault_proxy import Fault, FaultProxy

pytestmark = pytest.mark.flow
CONTENT = np.random.default_rng(0).bytes(300_000)
HOME = "s3://test/verified"


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(s3, seed=1) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        monkeypatch.setattr("kernels_bank.runtime.s3.LONGEST_PAUSE_S", 0.01)
        yield made


@pytest.fixture
def plain(s3: str) -> object:
    """A client past the proxy."""
    return boto3.client("s3", endpoint_url=s3)


def put(plain, key: str, **how: object) -> str:
    plain.put_object(Bucket="test", Key=f"verified/{key}", Body=CONTENT, **how)
    return f"{HOME}/{key}"


def put_in_parts(plain, key: str) -> str:
    """The ETag is not the MD5 then, and there is no checksum."""
    place = {"Bucket": "test", "Key": f"verified/{key}"}
    upload = plain.create_multipart_upload(**place)["UploadId"]
    answer = plain.upload_part(**place, UploadId=upload, PartNumber=1, Body=CONTENT)
    parts = [{"PartNumber": 1, "ETag": answer["ETag"]}]
    plain.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
    return f"{HOME}/{key}"


@pytest.fixture
def objects(plain) -> dict[str, str]:
    """An object of each kind of verification."""
    storage.write_bytes(f"{HOME}/ours", CONTENT)
    return {
        "metadata": f"{HOME}/ours",
        "checksum": put(plain, "checksum", ChecksumAlgorithm="SHA256"),
        "etag": put(plain, "etag"),
        "twice": put_in_parts(plain, "parts"),
    }


@pytest.mark.parametrize("kind", ["cut", "short", "flip", "status", "reset"])
def test_reads_are_right_whatever_comes(proxy: FaultProxy, objects: dict[str, str], tmp_path: Path, kind: str):
    proxy.faults = [Fault(kind, share=0.4, methods="GET", path="verified/")]  # type: ignore[arg-type]
    for uri in objects.values():
        for _ in range(3):
            assert storage.read_bytes(uri) == CONTENT
            assert storage.sha256_of(uri) == hashlib.sha256(CONTENT).hexdigest()
            storage.fetch(uri, tmp_path / "x")
            assert (tmp_path / "x").read_bytes() == CONTENT
    assert proxy.counts[kind] > 5
