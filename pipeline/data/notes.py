"""Notes of a job's results, kept next to its output, so that an attempt after a kill need not repeat the work.

A note is a key, made of everything that the result depends on, and a value. Notes are written in parts of some
hundred, at least every ten seconds of work. A part is named by the hash of its content, so damage is detected: a
damaged part is ignored, and its results are computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from kernels_bank.runtime import folders, storage, uris
from kernels_bank.runtime.errors import ArtefactError

_PART_BYTES = 128 << 10  # size of a part: some 600 images
_INTERVAL_S = 10.0  # the most work that a kill can lose
_SUFFIX = ".jsonl"
_AT_ONCE = 16  # parts read at a time


class Notes:
    """Keep notes in a folder: `with Notes(folder) as notes: notes.add(key, value)`; leaving the block writes the rest.

    Args:
        folder: path or URI; None keeps no notes.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = folder
        self._lines: list[bytes] = []
        self._bytes, self._since = 0, 0.0  # of the lines not yet written

    def __enter__(self) -> Notes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._write()
        else:
            with contextlib.suppress(Exception):  # the first error is the one to report
                self._write()

    def recall(self) -> Iterator[tuple[str, Any]]:
        """Yield the notes of earlier attempts, reading a few parts at a time."""
        if self._folder is None:
            return
        names = [name for name, _ in folders.list_files(self._folder) if name.endswith(_SUFFIX)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for first in range(0, len(names), _AT_ONCE):
                for data in pool.map(self._read, names[first : first + _AT_ONCE]):
                    for line in data.splitlines():
                        key, value = json.loads(line)
                        yield key, value

    def add(self, key: str, value: object) -> None:
        """Keep a note; it is written to disk a little later."""
        if self._folder is None:
            return
        if not self._lines:
            self._since = time.monotonic()
        self._lines.append(storage.canonical([key, value]))
        self._bytes += len(self._lines[-1])
        if self._bytes >= _PART_BYTES or time.monotonic() - self._since >= _INTERVAL_S:
            self._write()

    def _write(self) -> None:
        if self._lines and self._folder is not None:
            data = b"\n".join(self._lines) + b"\n"
            storage.write_bytes(uris.join(self._folder, _name(data)), data)
        self._lines, self._bytes = [], 0

    def _read(self, name: str) -> bytes:
        """Return the content of a part; empty if it is damaged or missing."""
        assert self._folder is not None
        with contextlib.suppress(ArtefactError):
            data = storage.read_bytes(uris.join(self._folder, name))
            if _name(data) == name:
                return data
        return b""


def _name(data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()[:32]}{_SUFFIX}"
