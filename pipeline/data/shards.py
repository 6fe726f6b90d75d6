"""From sources to shards with Ray Data: inspect every image, plan the shards, write each in a task.

Every step is noted and idempotent: an inspected image is not read again before its shard is written, and an existing
shard is kept. So a killed command can be run again to finish. The manifest comes last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, cast

import ray.data
from pydantic import ValidationError

from kernels_bank.runtime import folders, os_errors, storage, uris
from kernels_bank.runtime.cluster import connect
from kernels_bank.runtime.errors import ArtefactError, BadRequestError, UnavailableError
from kernels_bank.runtime.lease import Lease
from kernels_bank.runtime.output import check_own, not_made_again, note_files, own_output, remove_leftovers
from kernels_bank.runtime.progress import Progress
from kernels_bank.runtime.rows import rows_of
from pipeline.data.inspection import INSPECTION, Inspected, inspect_all, inspected
from pipeline.data.manifest import (
    MANIFEST,
    Manifest,
    Shard,
    ShardSettings,
    Skipped,
    check_files,
    content_digest,
    read_manifest,
    write_manifest,
)
from pipeline.data.sources import Place, Source, list_places, read_source
from pipeline.data.tiles import TileSample, cut, tile_count, write_samples
from pipeline.frozen import Frozen
from pipeline.images.decode import decode_image
from pipeline.images.photograph import Codec
from pipeline.seeds import fraction

_KIND = "shard set"
_NOTES = "_notes"  # notes of inspected images and written shards; removed once the manifest holds it all
# Measured on photographs. Only the shards' size depends on it.
_BYTES_PER_PIXEL: dict[Codec, float] = {"png": 1.8, "webp": 1.2, "raw": 3.0}


def make_shards(
    source: str | Sequence[str],
    output: str,
    settings: ShardSettings,
    *,
    max_bad_fraction: float = 0.01,
    column: str | None = None,
) -> tuple[Manifest, bool]:
    """Cut photographs into WebDataset tars under `output`.

    Args:
        source: one or several of: a folder, an s3:// prefix, a zip, tar or Parquet file, a .txt list of these.
        output: path or URI of the shard set.
        settings: settings that determine the shards' bytes.
        max_bad_fraction: share of unusable images above which the job fails.
        column: column of the images in Parquet files; None to find it by its type.

    Returns:
        The manifest, and whether a finished shard set made from the same files and settings was reused.

    Raises:
        BadRequestError: there are no images, or more than `max_bad_fraction` of them are unusable (the message lists
            them).
        ArtefactError: `output` holds a finished shard set of other images or settings.
    """
    output = uris.absolute(output)
    # Checked before Ray starts, so that an unreachable or foreign place is reported early.
    asked = [source] if isinstance(source, str) else list(source)
    check_place(output)
    job = _Job(output, settings, find_places(asked, output), ", ".join(asked), column, max_bad_fraction)
    connect()
    if not storage.exists(uris.join(output, MANIFEST)):
        with own_output(output, _KIND) as lease:
            # Another job may have finished before this one got the lock.
            if not storage.exists(uris.join(output, MANIFEST)):
                return _make(job, lease), False
    return _finished(job), True


class _ChangedError(BadRequestError):
    """Report an image that has changed since it was inspected."""


@dataclass(frozen=True)
class _Job:
    """Hold the request."""

    output: str
    settings: ShardSettings
    places: list[Place]
    asked: str
    column: str | None
    max_bad_fraction: float

    def inspect(self, notes: str | None) -> list[Inspected]:
        """Inspect every image."""
        min_side = self.settings.min_side
        return inspect_all(self.places, self.asked, column=self.column, min_side=min_side, notes=notes)


def _make(job: _Job, lease: Lease) -> Manifest:
    output, settings = job.output, job.settings
    files = job.inspect(uris.join(output, _NOTES))
    good, skipped = _usable(files)
    _refuse_if_too_many_bad(skipped, len(files), job.max_bad_fraction)
    # By the picture's digest, so that it stays on its side of the split whatever file holds it.
    is_validation = [fraction(f.picture, purpose="validation-split") < settings.validation for f in good]
    tasks = [
        *_plan("train", [f for f, held in zip(good, is_validation, strict=True) if not held], settings),
        *_plan("validation", [f for f, held in zip(good, is_validation, strict=True) if held], settings),
    ]
    note_files(output, [task["name"] for task in tasks])
    try:
        notes = _write(output, tasks, settings)
    except _ChangedError:
        folders.remove_folder(uris.join(output, _NOTES, INSPECTION))  # the stamp of a changed file may be the same
        raise
    shards = sorted((Shard(**note["shard"]) for note in notes if note["shard"]), key=lambda shard: shard.name)
    train = tuple(s for s in shards if s.name.startswith("train"))
    validation = tuple(s for s in shards if s.name.startswith("validation"))
    if not train:
        raise BadRequestError(f"{job.asked}: no training tile is left; lower --validation or --drop-flat")
    manifest = Manifest(
        settings=settings,
        source_digest=_source_digest(files),
        train=train,
        validation=validation,
        images=len(good),
        flat=sum(note["flat"] for note in notes),
        skipped=tuple(skipped),
        digest=content_digest(train, validation),
    )
    lease.check()
    remove_leftovers(output, {shard.name for shard in shards})
    write_manifest(output, manifest)
    folders.remove_folder(uris.join(output, _NOTES))
    return manifest


def find_places(sources: Sequence[str], output: str) -> list[Place]:
    """List the files and containers of all sources, each once, except those inside the output.

    Raises:
        BadRequestError: a source holds no images.
    """
    return list(dict.fromkeys(place for source in sources for place in list_places(source, leave_out=output)))


def check_place(output: str) -> None:
    """Check that the place is empty or holds shards, finished or not. Raises BadRequestError."""
    if not storage.exists(uris.join(output, MANIFEST)):
        check_own(output, _KIND)


def _finished(job: _Job) -> Manifest:
    """Return the manifest of a finished set of these sources and settings. Raises ArtefactError for a different set."""
    manifest = read_manifest(job.output)
    if manifest.settings != job.settings or manifest.source_digest != _source_digest(job.inspect(None)):
        raise ArtefactError(
            f"{job.output}: holds shards of other images or settings; choose another --output or delete it"
        )
    check_files(job.output, manifest)
    return manifest


def _source_digest(files: list[Inspected]) -> str:
    return storage.digest_of([[file.name, file.sha256] for file in files])


def _usable(files: list[Inspected]) -> tuple[list[Inspected], list[Skipped]]:
    good: list[Inspected] = []
    skipped: list[Skipped] = []
    first: dict[str, str] = {}
    for file in files:
        if file.reason:
            skipped.append(Skipped(name=file.name, reason=file.reason))
        elif file.picture in first:
            twin = first[file.picture]
            skipped.append(Skipped(name=file.name, reason=f"the same picture as {twin}", duplicate_of=twin))
        else:
            first[file.picture] = file.name
            good.append(file)
    return good, skipped


def _refuse_if_too_many_bad(skipped: list[Skipped], total: int, max_bad_fraction: float) -> None:
    bad = [s for s in skipped if not s.duplicate_of]
    if len(bad) > max_bad_fraction * total or len(bad) == total:
        names = ", ".join(f"{s.name} ({s.reason})" for s in bad[:20]) + (" ..." if len(bad) > 20 else "")
        raise BadRequestError(
            f"{len(bad)} of {total} images cannot be used: {names}; mend them or raise --max-bad-fraction"
        )


def _plan(split: str, files: list[Inspected], settings: ShardSettings) -> list[dict[str, Any]]:
    """Group consecutive images to tars of about `shard_mib`: a pure function of the list."""
    budget = settings.shard_mib * 2**20
    groups: list[list[Inspected]] = []
    used = budget
    for file in files:
        size = file.height * file.width * _BYTES_PER_PIXEL[settings.codec]
        if used + size / 2 >= budget:
            groups.append([])
            used = 0.0
        groups[-1].append(file)
        used += size
    return [{"name": f"{split}-{i:06d}.tar", "files": [asdict(f) for f in group]} for i, group in enumerate(groups)]


def _write(output: str, tasks: list[dict[str, Any]], settings: ShardSettings) -> list[dict[str, Any]]:
    """Write each shard in a Ray task; return their notes."""
    items = [{"task": task} for task in tasks]

    def write(row: dict[str, Any]) -> dict[str, Any]:
        with os_errors.told(), not_made_again(output):
            return {"note": _write_one(output, row["task"], settings)}

    notes = []
    with Progress("write", len(tasks), "shard") as bar:
        for row in rows_of(ray.data.from_items(items, override_num_blocks=len(items)).map(write)):
            notes.append(row["note"])
            shard = row["note"]["shard"]
            bar.advance(note=f"{shard['name']} {shard['bytes'] / 2**20:.1f} MiB" if shard else "")
    return notes


def _write_one(output: str, task: dict[str, Any], settings: ShardSettings) -> dict[str, Any]:
    """Write one tar, or keep it if a killed run had finished it."""
    where = uris.join(output, task["name"])
    note_at = uris.join(output, _NOTES, task["name"] + ".json")
    files = [inspected(file) for file in task["files"]]
    made_from = storage.digest_of([settings.model_dump(), [[f.name, f.sha256] for f in files]])
    known = _read_note(note_at)
    if known is not None and known.made_from == made_from and (known.shard is None or _is_there(where, known)):
        return known.model_dump()
    with storage.atomic_writer(where) as stream:
        hashed = _Hashed(stream)
        count = write_samples(_samples(files, settings), cast(BinaryIO, hashed))
    shard = {"name": task["name"], "samples": count, "bytes": hashed.bytes, "sha256": hashed.digest.hexdigest()}
    places = sum(tile_count(file.height, file.width, settings.tile) for file in files)
    note = _Note(
        made_from=made_from,
        shard=Shard(**shard) if count else None,
        stamp=storage.stamp(where),
        flat=places - count,
    )
    storage.write_json(note_at, note.model_dump())
    return note.model_dump()


class _Note(Frozen):
    """Record the images of a shard, and the shard made from them: None if all of its tiles are flat."""

    made_from: str
    shard: Shard | None
    stamp: str = ""
    flat: int


def _read_note(where: str) -> _Note | None:
    """Return the note of a shard, or None if it is missing or damaged; the shard is then written again."""
    if not storage.exists(where):
        return None
    try:
        return _Note.model_validate(storage.read_json(where))
    except UnavailableError:
        raise
    except (ArtefactError, ValidationError):
        return None


def _is_there(where: str, note: _Note) -> bool:
    """Return whether the shard is the one that was written. It is read only if its stamp differs."""
    now = storage.stamp(where)
    return bool(now) and (
        now == note.stamp or (note.shard is not None and storage.sha256_of(where) == note.shard.sha256)
    )


class _Hashed:
    """Hash the bytes written to a stream: the manifest has the hash of the intended bytes, not of those stored."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.digest, self.bytes = stream, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.bytes += len(data)
        return self._stream.write(data)


def _samples(files: list[Inspected], settings: ShardSettings) -> Iterator[TileSample]:
    rows = _parquet_rows(files)
    for file in files:
        data = rows.pop(file.source) if file.source in rows else read_source(file.source)
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise _ChangedError(f"{file.name}: changed while the job ran; run the same command again")
        image = decode_image(data)
        yield from cut(
            image,
            settings.tile,
            name=file.name,
            sha256=file.sha256,
            drop_flat=settings.drop_flat,
            codec=settings.codec,
        )


def _parquet_rows(files: list[Inspected]) -> dict[Source, bytes]:
    """Read a shard's images from Parquet files in the order of their rows; a task can hold them all."""
    rows = sorted((f.source for f in files if f.source.column), key=lambda source: (source.uri, source.member))
    return {source: read_source(source) for source in rows}
