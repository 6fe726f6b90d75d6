"""Sources to shards with Ray Data: inspect every file, plan the shards, write each in a task of its own.

Every step is idempotent: a shard that is already there and hashes to what its note says is kept, so the command
that was killed finishes when it is run again. The manifest comes last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import ray.data

from kernels_bank.runtime import storage
from kernels_bank.runtime.cluster import connect
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from kernels_bank.runtime.progress import Progress
from pipeline.data.images import BadImageError, decode_image, read_header
from pipeline.data.manifest import (
    MANIFEST,
    Manifest,
    Shard,
    ShardSettings,
    Skipped,
    content_digest,
    read_manifest,
)
from pipeline.data.sources import Source, list_sources, read_source
from pipeline.data.tiles import TileSample, cut, write_samples
from pipeline.seeds import fraction

_NOTES = "_notes"  # what each finished shard task recorded; removed once the manifest holds it all
# Measured on photographs: a lossless PNG takes about 60% of the raw bytes. Only the shards' size hangs on it.
_PNG_BYTES_PER_PIXEL = 1.8


@dataclass(frozen=True)
class Inspected:
    """One input file as its header describes it; `reason` is why it cannot be used, or empty."""

    name: str
    member: str
    uri: str
    sha256: str
    pixels: int
    reason: str


def make_shards(
    source: str, output: str, settings: ShardSettings, *, max_bad_fraction: float = 0.01
) -> tuple[Manifest, bool]:
    """Cut the images of `source` (folder, zip or s3:// prefix) into WebDataset tars under `output`.

    Returns:
        The manifest, and whether a finished shard set made from the same files and settings was reused.

    Raises:
        BadRequestError: no images, or more than `max_bad_fraction` of them unusable (the text lists them).
        ArtefactError: `output` holds a finished shard set of other images or settings.
    """
    connect()
    output = storage.absolute(output)
    files = _inspect(list_sources(source))
    source_digest = storage.digest_of([[f.name, f.sha256] for f in files])
    if storage.exists(storage.join(output, MANIFEST)):
        manifest = read_manifest(output)
        if (manifest.source_digest, manifest.settings) != (source_digest, settings):
            raise ArtefactError(
                f"{output}: holds shards of other images or settings; choose another --output or delete it"
            )
        return manifest, True
    good, skipped = _usable(files)
    _refuse_if_too_many_bad(skipped, len(files), max_bad_fraction)
    is_validation = [fraction(f.sha256, purpose="validation-split") < settings.validation for f in good]
    tasks = [
        *_plan("train", [f for f, held in zip(good, is_validation, strict=True) if not held], settings),
        *_plan("validation", [f for f, held in zip(good, is_validation, strict=True) if held], settings),
    ]
    notes = _write(output, tasks, settings)
    for note in notes:
        skipped += [Skipped(**s) for s in note["skipped"]]
    _refuse_if_too_many_bad(skipped, len(files), max_bad_fraction)
    shards = sorted((Shard(**note["shard"]) for note in notes if note["shard"]), key=lambda shard: shard.name)
    train = tuple(s for s in shards if s.name.startswith("train"))
    validation = tuple(s for s in shards if s.name.startswith("validation"))
    manifest = Manifest(
        settings=settings,
        source_digest=source_digest,
        train=train,
        validation=validation,
        images=len(files) - len(skipped),
        skipped=tuple(sorted(skipped, key=lambda s: s.name)),
        digest=content_digest(train, validation),
    )
    storage.write_json(storage.join(output, MANIFEST), manifest.model_dump())
    storage.remove_folder(storage.join(output, _NOTES))
    return manifest, False


def _inspect(sources: list[Source]) -> list[Inspected]:
    """Hash every file and read its header, in parallel; sorted by name."""
    rows = ray.data.from_items([asdict(s) for s in sources], override_num_blocks=min(len(sources), 64)).map(
        _inspect_one
    )
    found = []
    with Progress("inspect", len(sources), "image") as bar:
        for row in rows.iter_rows():
            found.append(Inspected(**row))
            bar.advance()
    return sorted(found, key=lambda f: f.name)


def _inspect_one(row: dict[str, Any]) -> dict[str, Any]:
    data = read_source(Source(**row))
    pixels, reason = 0, ""
    try:
        header = read_header(data)
        pixels = header.height * header.width
    except BadImageError as error:
        reason = str(error)
    return asdict(Inspected(row["name"], row["member"], row["uri"], hashlib.sha256(data).hexdigest(), pixels, reason))


def _usable(files: list[Inspected]) -> tuple[list[Inspected], list[Skipped]]:
    good: list[Inspected] = []
    skipped: list[Skipped] = []
    first_name: dict[str, str] = {}
    for file in files:
        if file.reason:
            skipped.append(Skipped(name=file.name, reason=file.reason))
        elif file.sha256 in first_name:
            skipped.append(Skipped(name=file.name, reason=f"the same file as {first_name[file.sha256]}"))
        else:
            first_name[file.sha256] = file.name
            good.append(file)
    return good, skipped


def _refuse_if_too_many_bad(skipped: list[Skipped], total: int, max_bad_fraction: float) -> None:
    bad = [s for s in skipped if not s.reason.startswith("the same file")]
    if len(bad) > max_bad_fraction * total or len(skipped) == total:
        names = ", ".join(f"{s.name} ({s.reason})" for s in bad[:20]) + (" ..." if len(bad) > 20 else "")
        raise BadRequestError(
            f"{len(bad)} of {total} images cannot be used: {names}; mend them or raise --max-bad-fraction"
        )


def _plan(split: str, files: list[Inspected], settings: ShardSettings) -> list[dict[str, Any]]:
    """Consecutive images grouped to about `shard_mib` a tar: a pure function of the list."""
    budget = settings.shard_mib * 2**20
    groups: list[list[Inspected]] = []
    used = budget
    for file in files:
        size = file.pixels * _PNG_BYTES_PER_PIXEL
        if used + size / 2 >= budget:
            groups.append([])
            used = 0.0
        groups[-1].append(file)
        used += size
    return [{"name": f"{split}-{i:06d}.tar", "files": [asdict(f) for f in group]} for i, group in enumerate(groups)]


def _write(output: str, tasks: list[dict[str, Any]], settings: ShardSettings) -> list[dict[str, Any]]:
    """One Ray task a shard; returns their notes."""
    items = [{"task": task} for task in tasks]

    def write(row: dict[str, Any]) -> dict[str, Any]:
        return {"note": _write_one(output, row["task"], settings)}

    notes = []
    with Progress("write", len(tasks), "shard") as bar:
        for row in ray.data.from_items(items, override_num_blocks=len(items)).map(write).iter_rows():
            notes.append(row["note"])
            shard = row["note"]["shard"]
            bar.advance(note=f"{shard['name']} {shard['bytes'] / 2**20:.1f} MiB" if shard else "")
    return notes


def _write_one(output: str, task: dict[str, Any], settings: ShardSettings) -> dict[str, Any]:
    """Write one tar, or keep the one a killed run had finished."""
    where = storage.join(output, task["name"])
    note_at = storage.join(output, _NOTES, task["name"] + ".json")
    made_from = storage.digest_of([settings.model_dump(), [[f["name"], f["sha256"]] for f in task["files"]]])
    if storage.exists(note_at):
        note = storage.read_json(note_at)
        shard = note["shard"]
        if note["made_from"] == made_from and (
            not shard or (storage.exists(where) and storage.sha256_of(where) == shard["sha256"])
        ):
            return dict(note)
    skipped: list[dict[str, str]] = []
    with storage.atomic_writer(where) as stream:
        count = write_samples(_samples(task["files"], settings.tile, skipped), stream)
        size = stream.tell()
    shard = (
        {"name": task["name"], "samples": count, "bytes": size, "sha256": storage.sha256_of(where)} if count else None
    )
    note = {"made_from": made_from, "shard": shard, "skipped": skipped}
    storage.write_json(note_at, note)
    return note


def _samples(files: list[dict[str, Any]], tile: int, skipped: list[dict[str, str]]) -> Iterator[TileSample]:
    for file in files:
        try:
            image = decode_image(read_source(Source(file["uri"], file["name"], file["member"])))
        except BadImageError as error:
            skipped.append({"name": file["name"], "reason": str(error)})
            continue
        yield from cut(image, tile, name=file["name"], sha256=file["sha256"])
