"""One image file of a source of photographs, in whatever container."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from kernels_bank.runtime.errors import BadRequestError
from pipeline.images.photograph import FORMAT_OF_SUFFIX

CONTAINERS = (".zip", ".tar", ".parquet")
MOST_BYTES = 2 * 2**30  # limit for an unpacked image file, above the largest possible image
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Source:
    """Name one image file."""

    uri: str  # of the file, or of the container that holds it
    name: str  # path inside the user's source
    member: int = -1  # number in a zip, first byte in a tar, row in a Parquet file; -1: not in a container
    size: int = -1  # bytes of a tar's member; -1 in a tar: damaged from here on
    column: str = ""  # column of a Parquet file


def is_image(name: str) -> bool:
    """Return whether a file is an image, by its suffix; its content decides how it is read."""
    return suffix(name) in FORMAT_OF_SUFFIX


def is_hidden(name: str) -> bool:
    """Return whether a file or a folder above it is hidden, or metadata of macOS."""
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def climbs(name: str) -> bool:
    """Return whether a part of the name leads upwards; a backslash counts as a slash, as on Windows."""
    return ".." in name.replace("\\", "/").split("/")


def plain(name: str) -> str:
    """Return `a/b.png` for `./a/b.png`, as written by `tar cf x.tar .`, and for `/a/b.png`."""
    return name.removeprefix("./").lstrip("/")


def suffix(name: str) -> str:
    """Return the suffix in lower case: `.png` for `a/B.PNG`."""
    return PurePosixPath(name).suffix.lower()


def suffixes(names: Iterable[str]) -> Counter[str]:
    """Count names by their suffix."""
    return Counter(suffix(name) or "without suffix" for name in names)


def in_words(counts: Counter[str]) -> str:
    """Return counts as text, `3 .gif, 1 .txt`, the most frequent suffix first; empty for no counts."""
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def say_passed_over(what: str, counts: Counter[str]) -> None:
    """Print the counts of files in a source that are not images, if any, in one line on stderr."""
    if counts:
        print(f"{what}: passed over, by suffix: {in_words(counts)}", file=sys.stderr, flush=True)


def refuse_compressed_tar(uri: str) -> None:
    """Refuse a compressed tar, of which no member can be read alone. Raises BadRequestError."""
    if uri.lower().endswith(COMPRESSED_TARS):
        raise BadRequestError(f"{uri}: a compressed tar, of which no member can be read alone; unpack it to a .tar")
