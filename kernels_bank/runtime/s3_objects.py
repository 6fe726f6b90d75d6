"""Objects on an S3 server. No object is used unless its content was verified.

An object is compared with the first available of these: the SHA-256 known to the caller; the SHA-256 in the object's
own metadata, which everything written here has; its checksum (CRC-32, SHA-1 or SHA-256), which botocore verifies while
it reads; its ETag, if that is the MD5 of the content; a second reading.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO

from kernels_bank.runtime.errors import DamagedError
from kernels_bank.runtime.s3 import TRIES, S3RefusedError, ask, bucket_and_key, no_s3_server

_CHUNK = 1 << 20
_PART = 64 << 20  # larger objects are uploaded in parts of this size
_SHA256 = "blindsr-sha256"  # metadata key of objects written here
_VERIFIED_BY_BOTOCORE = ("ChecksumSHA256", "ChecksumSHA1", "ChecksumCRC32")


@dataclass(frozen=True)
class Entry:
    """Name an entry below a prefix, relative to it; a `folder` represents all keys that begin with its name."""

    name: str
    size: int = 0
    changed: datetime | None = None
    folder: bool = False
    etag: str = ""

    @property
    def stamp(self) -> str:
        """Return size and ETag, which change when the object is written to."""
        return f"{self.size} {self.etag}"


def read(uri: str, sink: BinaryIO | None = None, sha256: str | None = None, tries: int = TRIES) -> str:
    """Write an object's verified content to `sink` and return its SHA-256.

    Args:
        uri: URI of the object.
        sink: file that is overwritten from its start and valid only after the return; None to get only the digest.
        sha256: expected digest, if it is known.
        tries: attempts at a request.

    Raises:
        FileNotFoundError: there is no such object.
        DamagedError: its content is wrong, also when read a second time.
        S3RefusedError: as `ask` does.
        S3Error: as `ask` does.
    """
    bucket, key = bucket_and_key(uri)
    seen: set[str] = set()  # digests of earlier readings

    def read_once(client: Any) -> str:  # noqa: ANN401
        def get() -> tuple[str, bool | None]:
            answer = client.get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
            expected = _expected(answer) if sha256 is None else ("sha256", sha256)
            return _copy(answer, sink, expected)

        digest, right = get()
        if right is None and digest not in seen:
            seen.add(digest)
            digest, right = get()
        again = digest in seen
        seen.add(digest)
        if right or (right is None and again):
            return digest
        if again:
            raise DamagedError(f"{uri}: damaged (its content does not fit its checksum, at a second reading either)")
        raise OSError("the content is not what it should be")

    return ask(uri, read_once, tries)


def _expected(answer: dict[str, Any]) -> tuple[str, str] | None:
    """Return the expected digest of a body and its kind; None if none is known."""
    if sha256 := answer.get("Metadata", {}).get(_SHA256):
        return "sha256", sha256
    # A checksum with a dash is a checksum of the parts' checksums, which botocore ignores.
    if any("-" not in answer.get(name, "-") for name in _VERIFIED_BY_BOTOCORE):
        return "botocore", ""
    md5 = _md5_in_etag(answer)
    return ("md5", md5) if md5 else None


def _md5_in_etag(answer: dict[str, Any]) -> str | None:
    """Return the MD5 of the content; None if the ETag is something else, as for parts (a dash) or encryption."""
    encrypted = str(answer.get("ServerSideEncryption", "")).startswith("aws:kms") or "SSECustomerAlgorithm" in answer
    found = re.fullmatch(r'"?([0-9a-f]{32})"?', answer.get("ETag", ""))
    return found[1] if found and not encrypted else None


def _copy(answer: dict[str, Any], sink: BinaryIO | None, expected: tuple[str, str] | None) -> tuple[str, bool | None]:
    """Copy a body to `sink`; return its SHA-256 and whether it is right, or None if no digest is expected."""
    if sink:
        sink.seek(0)
        sink.truncate()
    sha, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with contextlib.closing(answer["Body"]) as body:
        while chunk := body.read(_CHUNK):  # raises if the body is truncated or its checksum is wrong
            sha.update(chunk)
            if expected and expected[0] == "md5":
                md5.update(chunk)
            if sink:
                sink.write(chunk)
    match expected:
        case ("sha256", digest):
            return sha.hexdigest(), sha.hexdigest() == digest
        case ("md5", digest):
            return sha.hexdigest(), md5.hexdigest() == digest
        case ("botocore", _):
            return sha.hexdigest(), True
    return sha.hexdigest(), None


def write(uri: str, source: BinaryIO, tries: int = TRIES) -> None:
    """Store the content of `source`, a seekable file; the server verifies the upload by its MD5.

    Raises:
        S3RefusedError: as `ask` does.
        S3Error: as `ask` does.
    """
    bucket, key = bucket_and_key(uri)
    source.seek(0)
    sha, size = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        sha.update(chunk)
        size += len(chunk)
    source.seek(0)
    place: dict[str, Any] = {"Bucket": bucket, "Key": key}
    metadata = {_SHA256: sha.hexdigest()}
    if size <= _PART:
        content = source.read()
        ask(uri, lambda client: _send(client.put_object, content, **place, Metadata=metadata), tries)
        return
    upload = ask(uri, lambda client: client.create_multipart_upload(**place, Metadata=metadata), tries)["UploadId"]
    try:
        parts: list[dict[str, Any]] = []
        while piece := source.read(_PART):
            part = place | {"UploadId": upload, "PartNumber": len(parts) + 1}
            send = functools.partial(_send, content=piece, **part)
            answer = ask(uri, lambda client, send=send: send(client.upload_part), tries)  # type: ignore[misc]
            parts.append({"PartNumber": part["PartNumber"], "ETag": answer["ETag"]})
        ask(uri, lambda client: _complete(client, place, upload, parts, metadata), tries)
    except BaseException:
        with contextlib.suppress(Exception):
            ask(uri, lambda client: client.abort_multipart_upload(**place, UploadId=upload), tries=1)
        raise


def _send(call: Any, content: bytes, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 - a method of the client
    """Upload an object or a part of one. Raises OSError if the server received something else."""
    md5 = hashlib.md5(content, usedforsecurity=False)
    answer: dict[str, Any] = call(Body=content, ContentMD5=base64.b64encode(md5.digest()).decode(), **arguments)
    if _md5_in_etag(answer) not in {None, md5.hexdigest()}:
        raise OSError("the server stored something else than was sent")
    return answer


def _complete(client: Any, place: dict[str, Any], upload: str, parts: list[Any], metadata: dict[str, str]) -> None:  # noqa: ANN401
    """Assemble the object from its parts; a retry after a lost answer succeeds if the object is already complete."""
    from botocore.exceptions import ClientError

    try:
        client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchUpload" or client.head_object(**place)["Metadata"] != metadata:
            raise


def stat(uri: str, tries: int = TRIES) -> Entry | None:
    """Return the entry at this key: an object, a prefix with objects below it, a bucket, or None.

    Raises:
        S3RefusedError: as `ask` does.
        S3Error: as `ask` does.
    """
    bucket, key = bucket_and_key(uri)
    if key:
        # An answer without a body does not name the error; the listing will.
        with contextlib.suppress(FileNotFoundError, S3RefusedError):
            head = ask(uri, lambda client: client.head_object(Bucket=bucket, Key=key), tries)
            if "LastModified" not in head:
                raise no_s3_server(uri)
            return Entry(key, int(head["ContentLength"]), head["LastModified"], etag=head.get("ETag", ""))
    page = _list(uri, tries, Bucket=bucket, Prefix=f"{key}/" if key else "", MaxKeys=1)
    return Entry(key, folder=True) if page.get("Contents") or not key else None


def _list(uri: str, tries: int, **query: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a page of a listing; without a listing, there is no such bucket or no S3 server."""
    try:
        page: dict[str, Any] = ask(uri, lambda client: client.list_objects_v2(**query), tries)
    except FileNotFoundError as error:
        raise no_s3_server(uri) from error
    if "IsTruncated" not in page and "KeyCount" not in page and "Name" not in page:
        raise no_s3_server(uri)
    return page


def entries(uri: str, *, recursive: bool, tries: int = TRIES) -> Iterator[Entry]:
    """Yield the entries below a prefix: all objects, or without `recursive` objects and folders of one level.

    Raises:
        S3RefusedError: as `ask` does.
        S3Error: as `ask` does.
    """
    bucket, key = bucket_and_key(uri)
    prefix = f"{key}/" if key else ""
    query: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix} | ({} if recursive else {"Delimiter": "/"})
    while True:
        page = _list(uri, tries, **query)
        for item in page.get("Contents", []):
            name, etag = item["Key"][len(prefix) :], item.get("ETag", "")
            yield Entry(name, int(item["Size"]), item["LastModified"], etag=etag)
        for item in page.get("CommonPrefixes", []):
            yield Entry(item["Prefix"][len(prefix) : -1], folder=True)
        if not page.get("IsTruncated"):
            return
        query["ContinuationToken"] = page["NextContinuationToken"]


def delete(uri: str, tries: int = TRIES) -> None:
    """Delete an object; nothing happens if it does not exist."""
    bucket, key = bucket_and_key(uri)
    ask(uri, lambda client: client.delete_object(Bucket=bucket, Key=key), tries)


def delete_below(uri: str, tries: int = TRIES) -> None:
    """Delete every object below a prefix."""
    bucket, key = bucket_and_key(uri)
    for entry in list(entries(uri, recursive=True, tries=tries)):
        whole = f"{key}/{entry.name}" if key else entry.name
        ask(uri, lambda client, whole=whole: client.delete_object(Bucket=bucket, Key=whole), tries)  # type: ignore[misc]


def copy(source: str, target: str, tries: int = TRIES) -> None:
    """Copy an object with its metadata on the server. Raises FileNotFoundError."""
    from_bucket, from_key = bucket_and_key(source)
    bucket, key = bucket_and_key(target)
    origin = {"Bucket": from_bucket, "Key": from_key}
    ask(source, lambda client: client.copy_object(Bucket=bucket, Key=key, CopySource=origin), tries)


class RangeReader(io.RawIOBase):
    """Read an object piece by piece, for formats with their own checksums, such as zip.

    Each piece has the requested length, and all pieces are of the same object: if it is replaced meanwhile, an
    S3RefusedError is raised. The content is not verified.
    """

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri, self._at = uri, 0
        bucket, key = bucket_and_key(uri)
        head = ask(uri, lambda client: client.head_object(Bucket=bucket, Key=key))
        self._size = int(head["ContentLength"])
        self._object = {"Bucket": bucket, "Key": key, "IfMatch": head["ETag"]}

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position and return it. Raises OSError before the start, as files do."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, f"shorter than {-offset} bytes", self._uri)
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - a writable buffer
        """Fill the buffer up to the end of the object; return the number of bytes read."""
        count = min(len(buffer), self._size - self._at)
        if count <= 0:
            return 0
        asked = f"bytes={self._at}-{self._at + count - 1}"

        def read_once(client: Any) -> bytes:  # noqa: ANN401
            with contextlib.closing(client.get_object(**self._object, Range=asked)["Body"]) as body:
                piece = bytes(body.read())
            if len(piece) != count:
                raise OSError(f"{len(piece)} of {count} bytes came")
            return piece

        buffer[:count] = ask(self._uri, read_once)
        self._at += count
        return count
