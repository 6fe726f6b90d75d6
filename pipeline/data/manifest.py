"""The description of a shard set: `manifest.json`, written last, names every shard with its count and hash."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from pydantic import Field, ValidationError

from kernels_bank.runtime import storage, uris
from kernels_bank.runtime.errors import ArtefactError, DamagedError
from kernels_bank.runtime.output import check_complete
from kernels_bank.runtime.progress import Progress
from kernels_bank.runtime.sealed import unsealed, write_sealed
from pipeline.frozen import Frozen
from pipeline.images.photograph import Codec

SCHEMA_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
_SHARD_BYTES = 16 << 30  # a shard is held in memory while its tiles are read


class DamagedShardError(DamagedError):
    """Report a shard whose bytes differ from the manifest."""


class Shard(Frozen):
    """Describe one tar: file name, number of samples, size and hash."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.tar$", max_length=100)
    samples: int = Field(ge=1)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Skipped(Frozen):
    """Hold an input that is not in the shards, with the reason."""

    name: str
    reason: str
    duplicate_of: str = Field("", description="the input that shows the same picture, if that is the reason")


class ShardSettings(Frozen):
    """Hold the settings that determine the bytes of the shards, given the images."""

    codec: Codec = Field(
        "png",
        description="of the tiles, all lossless: webp is smaller and slower to read, raw twice as fast and larger",
    )
    tile: int = Field(480, ge=32, description="tile side in pixels; the last row and column align to the edge")
    shard_mib: float = Field(128, gt=0, description="aim for the size of a tar")
    validation: float = Field(0.0, ge=0, lt=1, description="share of the images (never tiles) kept for validation")
    min_side: int = Field(32, ge=1, description="images with a shorter side are skipped, in pixels")
    drop_flat: float = Field(
        0.0, ge=0, description="tiles whose standard deviation is below this many grey levels are left out; 0: none"
    )


class Manifest(Frozen):
    """Describe the whole shard set. `digest` identifies its content: equal digests, equal samples."""

    schema_version: Literal[1] = SCHEMA_VERSION
    settings: ShardSettings
    source_digest: str = Field(description="of the names and hashes of all input files")
    train: tuple[Shard, ...]
    validation: tuple[Shard, ...] = ()
    images: int
    flat: int = Field(0, description="tiles left out because they are flat")
    skipped: tuple[Skipped, ...] = ()
    digest: str

    @property
    def samples(self) -> int:
        """Count the training tiles of all shards."""
        return sum(shard.samples for shard in self.train)


def content_digest(train: tuple[Shard, ...], validation: tuple[Shard, ...]) -> str:
    """Return the identity of the samples: names, counts and hashes of all tars.

    The result equals `digest_of` the two lists, but is computed piece by piece: 100,000 shards as one text take 100 MB.
    """
    whole = hashlib.sha256(b"[[")
    for number, split in enumerate((train, validation)):
        if number:
            whole.update(b"],[")
        for place, shard in enumerate(split):
            whole.update(b"," * bool(place) + storage.canonical(shard.model_dump()))
    whole.update(b"]]")
    return whole.hexdigest()


def read_manifest(uri: str) -> Manifest:
    """Open a shard set.

    Raises:
        ArtefactError: the manifest is missing (the set was never finished), has another schema version, or was damaged
            or edited.
    """
    where = uris.join(uri, MANIFEST)
    if not storage.exists(where):
        raise ArtefactError(
            f"{uri}: no {MANIFEST} there; make the shards with jobs/shard_images.py (it finishes a killed run)"
        )
    manifest = _validated(storage.read_json(where), where)
    # Only now that the parsed JSON is freed: with 100,000 shards, each of the two takes tens of megabytes.
    if manifest.digest != content_digest(manifest.train, manifest.validation):
        raise ArtefactError(f"{where}: its digest does not fit its shards; the file was changed by hand")
    return manifest


def _validated(content: Any, where: str) -> Manifest:  # noqa: ANN401 - JSON
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtefactError(
            f"{where}: schema version {version}, this program reads {SCHEMA_VERSION}; update it or remake the shards"
        )
    try:
        return Manifest.model_validate(unsealed(content, where))
    except ValidationError as error:
        raise ArtefactError(f"{where}: damaged ({error.error_count()} wrong fields); remake the shards") from error


def write_manifest(uri: str, manifest: Manifest) -> None:
    """Write the manifest of a shard set whose shards all exist."""
    write_sealed(uris.join(uri, MANIFEST), manifest.model_dump(mode="json"))


def read_shard(uri: str, shard: Shard) -> bytes:
    """Read the whole tar and check it against its hash, so that no cut connection or flipped bit goes unnoticed.

    Raises:
        ArtefactError: the tar is missing or cannot be read.
        DamagedShardError: its bytes differ from the manifest, also when read a second time.
    """
    where = uris.join(uri, shard.name)
    try:
        return storage.read_bytes(where, shard.sha256, limit=_SHARD_BYTES)
    except DamagedError as error:
        reason = "damaged (its sha256 is not the manifest's); remake it with jobs/shard_images.py"
        raise DamagedShardError(f"{where}: {reason}") from error


def check_files(uri: str, manifest: Manifest) -> None:
    """Check, without reading them, that the tars of a finished set exist.

    Raises:
        ArtefactError: names the first tar that is missing or has another size than in the manifest.
    """
    sizes = {shard.name: shard.bytes for shard in (*manifest.train, *manifest.validation)}
    check_complete(uri, sizes, f"delete {MANIFEST} and run the command again to replace it")


def verify(uri: str) -> Manifest:
    """Verify every shard by its hash and every sample by decoding it, with progress.

    Raises:
        ArtefactError: names the first shard that differs from the manifest.
    """
    from pipeline.data.tiles import read_samples
    from pipeline.images import BadImageError
    from pipeline.images.decode import decode_tile

    manifest = read_manifest(uri)
    shards = (*manifest.train, *manifest.validation)
    with Progress("verify", len(shards), "shard") as bar:
        for shard in shards:
            count = 0
            for sample in read_samples(read_shard(uri, shard)):
                try:
                    decode_tile(sample.image)
                except BadImageError as error:
                    raise ArtefactError(f"{uris.join(uri, shard.name)}: sample {sample.key}: {error}") from error
                count += 1
            if count != shard.samples:
                raise ArtefactError(f"{uris.join(uri, shard.name)}: {count} samples, the manifest says {shard.samples}")
            bar.advance(note=shard.name)
    return manifest


def described(manifest: Manifest) -> str:
    """Describe a shard set in a few lines of text, including every skipped input with the reason."""
    shards = (*manifest.train, *manifest.validation)
    held_out = sum(shard.samples for shard in manifest.validation)
    lines = [
        f"  images   {manifest.images}, {len(manifest.skipped)} skipped",
        f"  tiles    {manifest.samples} for training in {len(manifest.train)} shards",
        f"           {held_out} for validation in {len(manifest.validation)} shards",
        f"  stored   {sum(shard.bytes for shard in shards) / 2**20:.1f} MiB",
        f"  digest   {manifest.digest}",
    ]
    if manifest.flat:
        lines.insert(2, f"           {manifest.flat} flat ones left out")
    lines += [f"  skipped  {skipped.name}: {skipped.reason}" for skipped in manifest.skipped]
    return "\n".join(lines)
