"""Stores of a lease's entry, which create, replace and remove it by compare-and-set."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels_bank.runtime import s3, storage, uris

_NO_LOCKS = (
    "its file system knows no locks; two writers that start at the same moment after one was killed are not kept apart"
)
_NO_CONDITIONS = (
    "its S3 server knows no conditional writes (If-None-Match); two writers that start at the same moment are not "
    "kept apart"
)


@dataclass(frozen=True)
class Entry:
    """Hold a writer's description of itself."""

    content: dict[str, Any]  # empty if it is not ours or half written
    version: str  # changes with every write


class LeaseStore(ABC):
    """Keep one entry, by compare-and-set."""

    @abstractmethod
    def create(self, content: dict[str, Any]) -> bool:
        """Write the entry if there is none; return whether that succeeded."""

    @abstractmethod
    def read(self) -> Entry | None:
        """Return the entry, or None."""

    @abstractmethod
    def replace(self, seen: Entry, content: dict[str, Any]) -> bool:
        """Write the entry if it is still `seen`; return whether that succeeded."""

    @abstractmethod
    def remove(self, seen: Entry) -> None:
        """Delete the entry if it is still `seen`."""

    @abstractmethod
    def weakness(self) -> str:
        """Return which guarantee this store cannot give; empty if it gives all."""


def lease_store(uri: str) -> LeaseStore:
    """Return the store for the entry at a path or URI."""
    return _S3Entry(uri) if uris.is_s3(uri) else _FileEntry(Path(storage.resolve(uri)[1]))


class _FileEntry(LeaseStore):
    """Keep the entry in a file. Each read and write holds a lock on the folder, which the kernel frees at a death."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self, content: dict[str, Any]) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            try:
                file = self._path.open("xb")  # O_EXCL also works where the lock has no effect
            except FileExistsError:
                return False
            try:
                with file:
                    file.write(_encoded(content))
            except OSError:  # a full disk: nothing half written stays
                self._path.unlink(missing_ok=True)
                raise
        return True

    def read(self) -> Entry | None:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        return Entry(_decoded(data), data.hex())

    def replace(self, seen: Entry, content: dict[str, Any]) -> bool:
        with self._locked():
            if self.read() != seen:
                return False
            temporary = self._path.with_name(storage.temporary_name(self._path.name))
            try:
                temporary.write_bytes(_encoded(content))
                temporary.replace(self._path)
            except OSError:  # a full disk: nothing half written stays
                temporary.unlink(missing_ok=True)
                raise
        return True

    def remove(self, seen: Entry) -> None:
        with self._locked():
            if self.read() == seen:
                self._path.unlink(missing_ok=True)

    def weakness(self) -> str:
        with self._locked() as locked:
            return "" if locked else _NO_LOCKS

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError:  # some network file systems
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)


class _S3Entry(LeaseStore):
    """Keep the entry in an object, written with If-None-Match or If-Match."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        bucket, key = s3.bucket_and_key(uri)
        self._object = {"Bucket": bucket, "Key": key}

    def create(self, content: dict[str, Any]) -> bool:
        return self._put(content, IfNoneMatch="*") if _keeps_conditions(self._uri) else self._put_if_free(content)

    def read(self) -> Entry | None:
        def get(client: Any) -> Entry:  # noqa: ANN401 - boto3 has no types
            answer = client.get_object(**self._object)
            return Entry(_decoded(answer["Body"].read()), answer["ETag"])

        try:
            return s3.ask(self._uri, get)
        except FileNotFoundError:
            return None

    def replace(self, seen: Entry, content: dict[str, Any]) -> bool:
        if _keeps_conditions(self._uri):
            return self._put(content, IfMatch=seen.version)
        return self.read() == seen and self._put(content)

    def remove(self, seen: Entry) -> None:
        if self.read() == seen:
            s3.ask(self._uri, lambda client: client.delete_object(**self._object, IfMatch=seen.version))

    def weakness(self) -> str:
        return "" if _keeps_conditions(self._uri) else _NO_CONDITIONS

    def _put_if_free(self, content: dict[str, Any]) -> bool:
        return self.read() is None and self._put(content)

    def _put(self, content: dict[str, Any], **condition: str) -> bool:
        """Write under a condition. If the answer is lost, reading the object shows whether the write succeeded."""
        body, refused = _encoded(content), False

        def put(client: Any) -> None:  # noqa: ANN401
            nonlocal refused
            try:
                client.put_object(**self._object, Body=body, **condition)
            except client.exceptions.ClientError as error:
                if not _is_refusal(error):
                    raise
                refused = True

        try:
            s3.ask(self._uri, put)
        except FileNotFoundError:  # If-Match for an object that has gone
            return False
        if not refused:
            return True
        entry = self.read()
        return entry is not None and entry.content == content


@functools.lru_cache(maxsize=64)
def _keeps_conditions(uri: str) -> bool:
    """Check whether the object's server refuses a second write under If-None-Match; some ignore the header."""
    folder, _, name = uri.rpartition("/")
    bucket, key = s3.bucket_and_key(uris.join(folder, storage.temporary_name(name)))
    place = {"Bucket": bucket, "Key": key}

    def is_refused(client: Any) -> bool:  # noqa: ANN401
        client.put_object(**place, Body=b"")
        try:
            client.put_object(**place, Body=b"", IfNoneMatch="*")
        except client.exceptions.ClientError as error:
            if _status(error) not in {400, 405, 409, 412, 501}:
                raise
            return _is_refusal(error)
        finally:
            client.delete_object(**place)
        return False

    return s3.ask(uri, is_refused)


def _is_refusal(error: Any) -> bool:  # noqa: ANN401 - a botocore ClientError
    """Check whether the condition failed: 412, or 409 during another conditional write."""
    return _status(error) in {409, 412}


def _status(error: Any) -> int:  # noqa: ANN401
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _encoded(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
