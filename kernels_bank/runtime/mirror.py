"""A local mirror of a folder on S3, for code that appends to files, which S3 does not support."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from kernels_bank.runtime import folders, scratch, storage, uris
from kernels_bank.runtime.errors import BadRequestError, JobFailedError


@contextlib.contextmanager
def local_folder(uri: str, *, every_s: float = 30.0, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a local copy of the files under `uri`; upload changes while the block runs and at its end.

    A killed process loses at most the last `every_s` seconds. Files are uploaded in the order in which they were last
    written, so the last file in the folder is also last under `uri`. Files deleted in the block are deleted there at
    its end. For a local `uri`, the folder itself is yielded and nothing is copied.

    Args:
        uri: URI of the folder or prefix.
        every_s: seconds between two uploads.
        check: function called before each upload; it raises JobFailedError if another process has taken over `uri`.

    Raises:
        ArtefactError: a file under `uri` cannot be read.
        BadRequestError: the key of a file is not a valid file name.
        JobFailedError: from `check`, at the end.
        OSError: `uri` cannot be written to, at the end.
    """
    if "://" not in uri or uri.startswith("file://"):
        yield Path(storage.resolve(uri)[1])
        return
    with scratch.temporary("folder") as folder:
        for file, _ in folders.list_files(uri, recursive=True):
            if not {"", ".", ".."}.isdisjoint(file.split("/")):
                raise BadRequestError(f"{uri}: holds '{file}', which is no name of a file; choose another place")
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            storage.fetch(uris.join(uri, file), folder / file)
        known = _written(folder)
        ended = threading.Event()

        def keep_sending() -> None:
            while not ended.wait(every_s):
                # While the store is unavailable, only an interval is lost, not the work.
                with contextlib.suppress(OSError, JobFailedError):
                    check()
                    _send(folder, uri, known)

        sender = threading.Thread(target=keep_sending, name="send-results", daemon=True)
        sender.start()
        try:
            yield folder
        finally:
            ended.set()
            sender.join()
            check()
            _send(folder, uri, known)
            for file in known.keys() - _written(folder).keys():
                storage.remove_file(uris.join(uri, file))


def _send(folder: Path, uri: str, known: dict[str, int]) -> None:
    """Upload the files that differ from `known` (name -> time of writing), and update it."""
    for file, written in sorted(_written(folder).items(), key=lambda item: item[1]):
        if known.get(file) != written:
            storage.write_bytes(uris.join(uri, file), (folder / file).read_bytes())
            known[file] = written


def _written(folder: Path) -> dict[str, int]:
    """Return the files below with their time of writing in ns, except half-written ones of `storage.atomic_writer`."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}
