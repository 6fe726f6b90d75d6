"""What a source of photographs is made of: one image file, wherever it lies."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from kernels_bank.runtime.errors import BadRequestError
from pipeline.images.photograph import FORMAT_OF_SUFFIX

CONTAINERS = (".zip", ".tar", ".parquet")
MOST_BYTES = 2 * 2**30  # of an image file, unpacked: more than the largest image has
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Source:
    """Name one image file."""

    uri: str  # of the file, or of the container that holds it
    name: str  # path inside what the user named
    member: int = -1  # its number in a zip, first byte in a tar, row in a Parquet file; -1: a file of its own
    size: int = -1  # bytes, of a tar's member; -1 there: the tar is damaged from here on
    column: str = ""  # of a Parquet file


def is_image(name: str) -> bool:
    """Tell by its suffix whether a file is an image; how it is read is decided by its content."""
    return suffix(name) in FORMAT_OF_SUFFIX


def is_hidden(name: str) -> bool:
    """Tell whether a file or a folder above it is hidden, or is macOS' own."""
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def climbs(name: str) -> bool:
    """Tell whether a part of the name leads upwards; a backslash is taken for a slash, as Windows does."""
    return ".." in name.replace("\\", "/").split("/")


def plain(name: str) -> str:
    """Return `a/b.png` of `./a/b.png`, as `tar cf x.tar .` writes it, and of `/a/b.png`."""
    return name.removeprefix("./").lstrip("/")


def suffix(name: str) -> str:
    """Return `.png` of `a/B.PNG`."""
    return PurePosixPath(name).suffix.lower()


def suffixes(names: Iterable[str]) -> Counter[str]:
    """Count names by their suffix."""
    return Counter(suffix(name) or "without suffix" for name in names)


def in_words(counts: Counter[str]) -> str:
    """Return `3 .gif, 1 .txt`, the most frequent suffix first; empty for none."""
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def say_passed_over(what: str, counts: Counter[str]) -> None:
    """Print what of a source is no image, if anything, in one line on stderr."""
    if counts:
        print(f"{what}: passed over, by suffix: {in_words(counts)}", file=sys.stderr, flush=True)


def refuse_compressed_tar(uri: str) -> None:
    """Check that a tar is not compressed: then no member can be read alone. Raises BadRequestError."""
    if uri.lower().endswith(COMPRESSED_TARS):
        raise BadRequestError(f"{uri}: a compressed tar, of which no member can be read alone; unpack it to a .tar")
