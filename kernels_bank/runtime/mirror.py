"""A local folder that stands for one on S3, for code that appends to its files, which S3 cannot."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from kernels_bank.runtime import scratch, storage, uris
from kernels_bank.runtime.errors import BadRequestError, JobFailedError


@contextlib.contextmanager
def local_folder(uri: str, *, every_s: float = 30.0, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a folder with what lies under `uri`; changes in it are sent back while the block runs and at its end.

    A process that is killed loses at most the last `every_s` seconds. Files go in the order in which they were last
    written, so what is written last in the folder is last under `uri` too; files deleted in the block are deleted
    there at its end. A local `uri` is the folder itself, and nothing is copied.

    Args:
        uri: of the folder or prefix.
        every_s: seconds between two looks at what has changed.
        check: called before anything is sent; it raises JobFailedError when `uri` is another process's by now.

    Raises:
        ArtefactError: a file under `uri` cannot be read.
        BadRequestError: there is one whose key is no name of a file.
        JobFailedError: at the end, from `check`.
        OSError: at the end, when `uri` cannot be written.
    """
    if "://" not in uri or uri.startswith("file://"):
        yield Path(storage.resolve(uri)[1])
        return
    with scratch.temporary("folder") as folder:
        for file, _ in storage.list_files(uri, recursive=True):
            if not {"", ".", ".."}.isdisjoint(file.split("/")):
                raise BadRequestError(f"{uri}: holds '{file}', which is no name of a file; choose another place")
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            storage.fetch(uris.join(uri, file), folder / file)
        known = _written(folder)
        ended = threading.Event()

        def keep_sending() -> None:
            while not ended.wait(every_s):
                # A store that is away for a while costs an interval, not the work.
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
    """Send the files that are not as in `known` (name -> time of writing), and note them there."""
    for file, written in sorted(_written(folder).items(), key=lambda item: item[1]):
        if known.get(file) != written:
            storage.write_bytes(uris.join(uri, file), (folder / file).read_bytes())
            known[file] = written


def _written(folder: Path) -> dict[str, int]:
    """Files below, but not the half-written ones of `storage.atomic_writer`; when each was last written, ns."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}
