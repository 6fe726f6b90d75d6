"""Inspection of every image of the sources, once: containers are opened, each image is hashed and decoded.

Results are noted as work proceeds, under a key made of the file's place and stamp. After a kill the next attempt lists
the sources again, but opens only containers and reads only images that have no note.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray.data

from kernels_bank.runtime import os_errors, storage, uris
from kernels_bank.runtime.errors import ArtefactError
from kernels_bank.runtime.progress import Progress
from kernels_bank.runtime.rows import rows_of
from pipeline.data.notes import Notes
from pipeline.data.sources import Place, Source, members, named, read_source, say_passed_over
from pipeline.images import BadImageError
from pipeline.images.decode import decode_image, picture_digest

INSPECTION = "inspected"  # folder of the notes on images
# Increased when the same file would give another result: other pixels, other members.
_VERSION = 1
_AT_ONCE = 32  # files of a list whose stamps are requested at a time


@dataclass(frozen=True)
class Inspected:
    """Describe one image; `reason` is why it cannot be used, or empty."""

    source: Source
    sha256: str
    height: int
    width: int
    picture: str  # digest of the decoded pixels
    reason: str

    @property
    def name(self) -> str:
        """Return the image's name."""
        return self.source.name


def inspect_all(
    places: Sequence[Place], asked: str, *, column: str | None, min_side: int, notes: str | None
) -> list[Inspected]:
    """Inspect every image of the files and containers, in parallel.

    Args:
        places: files and containers.
        asked: the user's own name of the sources, for messages.
        column: column of the images in Parquet files; None to find it by its type.
        min_side: smallest side of a usable image, pixels.
        notes: folder for notes of the results; None writes no notes.

    Returns:
        All images, sorted by name.

    Raises:
        BadRequestError: there is no image, or a container cannot be read.
    """
    stamps = _stamps(places)
    with Notes(notes and uris.join(notes, "opened")) as opened:
        sources = _open_all(places, asked, column, stamps, opened)
    with Notes(notes and uris.join(notes, INSPECTION)) as inspected:
        found = _inspect(sources, stamps, inspected)
    return [_judged(file, min_side) for file in found]


def inspected(row: dict[str, Any]) -> Inspected:
    """Return the `Inspected` that `asdict` made a dictionary of."""
    return Inspected(**(row | {"source": Source(**row["source"])}))


def _stamps(places: Iterable[Place]) -> dict[str, str]:
    """Return every file's stamp by its URI, taken before the file is read; request those missing from listings."""
    stamps = {place.uri: place.stamp for place in places}
    untold = [uri for uri, stamp in stamps.items() if not stamp]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return stamps | dict(zip(untold, pool.map(storage.stamp, untold), strict=True))


def _key(stamp: str, *identity: object) -> str:
    return storage.digest_of([_VERSION, stamp, *identity])[:32]


def _open_all(
    places: Sequence[Place], asked: str, column: str | None, stamps: dict[str, str], notes: Notes
) -> list[Source]:
    """List all images, including those in containers; a separate task reads each container."""
    containers = {_key(stamps[p.uri], p.uri, p.name, p.root, column): p for p in places if p.is_container}
    passed_over: Counter[str] = Counter()
    inside: dict[Place, list[Source]] = {}

    def take(place: Place, content: str) -> None:
        images, others = json.loads(content)
        inside[place] = [Source(place.uri, **image) for image in images]
        passed_over.update(others)

    if containers:
        for key, content in notes.recall():
            if (place := containers.get(key)) is not None and place not in inside:
                take(place, content)
    left = {key: place for key, place in containers.items() if place not in inside}

    def open_one(row: dict[str, Any]) -> dict[str, Any]:
        with os_errors.told():
            images, others = members(row["uri"], column)
        content = [[_without_uri(image) for image in images], others]
        return {"key": row["key"], "content": json.dumps(content)}  # as text: Arrow would merge dictionary keys

    if left:
        items = [{"key": key, "uri": place.uri} for key, place in left.items()]
        with Progress("open", len(containers), "container") as bar:
            bar.start_at(len(containers) - len(left))
            for row in rows_of(ray.data.from_items(items, override_num_blocks=len(items)).map(open_one)):
                take(left[row["key"]], row["content"])
                notes.add(row["key"], row["content"])
                bar.advance()
    say_passed_over(asked, passed_over)
    return named(places, inside, asked)


def _without_uri(source: Source) -> dict[str, Any]:
    return {name: value for name, value in asdict(source).items() if name != "uri"}


def _inspect(sources: list[Source], stamps: dict[str, str], notes: Notes) -> list[Inspected]:
    """Hash and decode every image without a note; return all images in the order of the sources.

    Decoding here and again for the tiles costs a fifth of the job. In return the plan is exact, bad images are refused
    before any shard is written, and duplicates are found by their pixels.
    """
    found: list[Inspected | None] = [None] * len(sources)
    _recall(found, sources, stamps, notes)
    # Sorted by place: neighbours in a container are read as a stream.
    left = [place for place in range(len(sources)) if found[place] is None]
    left.sort(key=lambda place: (sources[place].uri, sources[place].member))
    if len(left) < len(sources):
        noted = f"{len(sources) - len(left)} of {len(sources)} images"
        print(f"inspect: {noted} were inspected before, by a try that did not finish", file=sys.stderr, flush=True)

    def inspect(row: dict[str, Any]) -> dict[str, Any]:
        return {"place": row["place"], "found": asdict(_inspect_one(Source(**row["source"])))}

    if left:
        items = [{"source": asdict(sources[place]), "place": place} for place in left]
        blocks = min(len(left), max(64, len(left) // 32))
        with Progress("inspect", len(sources), "image") as bar:
            bar.start_at(len(sources) - len(left))
            for row in rows_of(ray.data.from_items(items, override_num_blocks=blocks).map(inspect)):
                place, file = row["place"], replace(inspected(row["found"]), source=sources[row["place"]])
                found[place] = file
                if not file.reason:  # unusable images are inspected again: the image or a decoder may have been fixed
                    notes.add(_image_key(file.source, stamps), [file.sha256, file.height, file.width, file.picture])
                bar.advance()
    return [file for file in found if file is not None]


def _recall(found: list[Inspected | None], sources: list[Source], stamps: dict[str, str], notes: Notes) -> None:
    """Fill in the notes of earlier attempts on exactly these files."""
    places: dict[str, int] | None = None
    for key, (sha256, height, width, picture) in notes.recall():
        if places is None:
            places = {_image_key(source, stamps): place for place, source in enumerate(sources)}
        if (place := places.get(key)) is not None:
            found[place] = Inspected(sources[place], sha256, height, width, picture, "")


def _image_key(source: Source, stamps: dict[str, str]) -> str:
    return _key(stamps[source.uri], source.uri, source.member, source.size, source.column)


def _inspect_one(source: Source) -> Inspected:
    sha256, height, width, picture, reason = "", 0, 0, "", ""
    try:
        data = read_source(source)
        sha256 = hashlib.sha256(data).hexdigest()
        image = decode_image(data)
        height, width = image.shape[:2]
        picture = picture_digest(image)
    except (BadImageError, ArtefactError) as error:
        reason = str(error)
    except MemoryError:
        reason = "out of memory"
    return Inspected(source, sha256, height, width, picture, reason)


def _judged(file: Inspected, min_side: int) -> Inspected:
    """Return the image, with a reason if it is too small; notes hold for any `--min-side`."""
    if file.reason or min(file.height, file.width) >= min_side:
        return file
    short = f"{file.width} x {file.height} pixels, a side is shorter than --min-side {min_side}"
    return replace(file, reason=short)
