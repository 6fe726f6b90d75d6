"""Requests to an S3 server. Endpoint, region and credentials come from the usual AWS variables."""

from __future__ import annotations

import functools
import os
import threading
from typing import Any

_VARIABLES = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_CA_BUNDLE",
)
_making = threading.Lock()  # clients may be shared by threads, but not made by two at once


def client() -> Any:  # noqa: ANN401 - boto3 has no types
    """Return the boto3 client of the server that the AWS variables name; threads may share it.

    It does not retry; `bucket_and_key` splits a URI for its calls.
    """
    with _making:
        return _client(tuple(os.environ.get(name) for name in _VARIABLES))


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Return the two parts of `s3://bucket/key`. A key may have empty parts: that of `s3://b//d` is `/d`."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


@functools.lru_cache(maxsize=8)
def _client(variables: tuple[str | None, ...]) -> Any:  # noqa: ANN401
    import boto3
    from botocore.config import Config

    session = boto3.Session()
    region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=5,
        read_timeout=30,
        max_pool_connections=32,
        # Content-MD5 goes with each object instead, which every server knows.
        request_checksum_calculation="when_required",
    )
    return session.client("s3", region_name=region, config=config)
