"""The bank on disk: Parquet shards, a codec, and finally a manifest. Everything is checked against its digest.

kernels-00000.parquet ...   columns index, family, kernel (fixed-size list of float32, row-major), drawn parameters;
                            the file's own metadata names its kernels and their SHA-256
codec.safetensors           the kernel code
building.json               only while the bank is incomplete: its spec
manifest.json               schema, spec, counts, per-file rows + bytes + SHA-256, digests
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kernels_bank.codec_quality import Loss
from kernels_bank.runtime import storage, uris
from kernels_bank.runtime.errors import ArtefactError
from kernels_bank.runtime.output import check_complete
from kernels_bank.runtime.sealed import unsealed, write_sealed
from kernels_bank.spec import COMPOSITES, FAMILIES, REDUCING, Family, KernelBankSpec

SCHEMA = 1
# Increased whenever the same spec draws other kernels than before, so that shards of different generators never mix.
GENERATOR = 1
SHARD_ROWS = 8192
_SHARD_BYTES = 1 << 30  # 8192 kernels of 99 pixels have 321 MB

MANIFEST, CODEC, BUILDING = "manifest.json", "codec.safetensors", "building.json"
PARAMETERS = ("sigma_along", "sigma_across", "angle", "extent", "memory", "radius")
_METADATA_KEY = b"kernel_bank"
_ADVICE = "delete the manifest and build again to replace it"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Shard(BaseModel):
    """Name the kernels of one file: `rows` of a family from `start` on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^kernels-\d{5,8}\.parquet$")
    family: Family
    start: int = Field(ge=0)
    rows: int = Field(ge=1, le=SHARD_ROWS)


class ShardRecord(Shard):
    """Record a written shard: the file's size and SHA-256, and the SHA-256 of its kernels' float32 bytes."""

    bytes: int = Field(ge=0, le=_SHARD_BYTES)
    sha256: Sha256
    content: Sha256


class CodecRecord(BaseModel):
    """Record the written codec."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Sha256
    digest: Sha256
    components: int = Field(ge=1)
    explained_variance: float
    losses: list[Loss]


class Manifest(BaseModel):
    """Describe the content of the bank; the manifest is written once the bank is complete."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = "kernel-bank"
    schema_version: int = SCHEMA
    generator: int = GENERATOR
    spec: KernelBankSpec
    digest: Sha256
    shards: list[ShardRecord]
    codec: CodecRecord
    made_with: dict[str, str]


def plan(spec: KernelBankSpec) -> list[Shard]:
    """Plan the shards of a bank: each is of one family, in the order of the bank."""
    shards: list[Shard] = []
    for family, count in spec.counts.items():
        for start in range(0, count, SHARD_ROWS):
            name = f"kernels-{len(shards):05d}.parquet"
            shards.append(Shard(name=name, family=family, start=start, rows=min(SHARD_ROWS, count - start)))
    return shards


def law_digest(spec: KernelBankSpec, family: Family) -> str:
    """Return the digest of everything that affects a family's kernels: neither the counts nor the codec."""
    free = {*FAMILIES, "components", "explained_variance", "standardize"}
    if family not in COMPOSITES:
        free |= set(REDUCING)
    return storage.digest_of({"generator": GENERATOR, **spec.model_dump(exclude=free)})


def content_digest(kernels: np.ndarray) -> str:
    """Return the hex SHA-256 of kernels as little-endian float32, row-major: independent of the file format."""
    return hashlib.sha256(np.ascontiguousarray(kernels, dtype="<f4").data).hexdigest()


def bank_digest(size: int, shards: list[ShardRecord]) -> str:
    """Return the bank's identity, which depends only on its kernels in order."""
    return storage.digest_of({"size": size, "kernels": [[s.family, s.start, s.rows, s.content] for s in shards]})


def write_shard(
    uri: str, shard: Shard, law: str, kernels: np.ndarray, parameters: dict[str, np.ndarray]
) -> ShardRecord:
    """Write one shard atomically.

    Args:
        uri: URI of the bank.
        shard: place of the kernels in the bank.
        law: digest of the distribution that they were drawn from.
        kernels: (rows, k, k) float32.
        parameters: drawn parameters by name, each (rows,); names must be in `PARAMETERS`.

    Raises:
        ValueError: the files have no column for a parameter.
    """
    if unknown := parameters.keys() - set(PARAMETERS):
        raise ValueError(f"{', '.join(sorted(unknown))}: not in PARAMETERS, so it would not be stored")
    import pyarrow as pa
    from pyarrow import parquet

    rows, side = len(kernels), kernels.shape[-1]
    content = content_digest(kernels)
    flat = pa.array(np.ascontiguousarray(kernels, dtype=np.float32).reshape(-1))
    columns: dict[str, Any] = {
        "index": pa.array(np.arange(shard.start, shard.start + rows, dtype=np.int32)),
        "family": pa.DictionaryArray.from_arrays(np.zeros(rows, dtype=np.int8), [shard.family]),
        "kernel": pa.FixedSizeListArray.from_arrays(flat, side * side),
    }
    for name in PARAMETERS:
        columns[name] = pa.array(parameters[name]) if name in parameters else pa.nulls(rows, pa.float32())
    about = {"schema": SCHEMA, "law": law, "content": content, **shard.model_dump(exclude={"name"})}
    table = pa.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(about, sort_keys=True).encode()})
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd", compression_level=1, use_dictionary=["family"])
    data = sink.getvalue().to_pybytes()
    storage.write_bytes(uris.join(uri, shard.name), data)
    return _record(shard, data, content)


def find_shard(uri: str, shard: Shard, law: str) -> tuple[ShardRecord, np.ndarray] | None:
    """Return the shard and its kernels if an earlier run completed it.

    Return None if it is missing, damaged or from another bank.
    """
    try:
        data = storage.read_bytes(uris.join(uri, shard.name))
        about, kernels = _parse(data, shard.name)
    except ArtefactError:
        return None
    expected = {"schema": SCHEMA, "law": law, "content": content_digest(kernels), **shard.model_dump(exclude={"name"})}
    return (_record(shard, data, about["content"]), kernels) if about == expected else None


def read_shard(uri: str, record: ShardRecord) -> np.ndarray:
    """Read the kernels (rows, k, k) of one shard, checked against the manifest. Read-only float32.

    Raises:
        ArtefactError: the file is missing, truncated or altered.
    """
    where = uris.join(uri, record.name)
    data = storage.read_bytes(where, limit=_SHARD_BYTES)
    if len(data) != record.bytes:
        raise ArtefactError(
            f"{where}: {len(data)} bytes instead of {record.bytes}; the file is cut short or not this bank's; {_ADVICE}"
        )
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise ArtefactError(f"{where}: its SHA-256 is not the manifest's; the file is damaged; {_ADVICE}")
    kernels = _parse(data, where, rows=record.rows)[1]
    if content_digest(kernels) != record.content:
        raise ArtefactError(f"{where}: its kernels are not those of the manifest")
    return kernels


def read_manifest(uri: str | Path) -> Manifest:
    """Read the manifest of a complete bank.

    Raises:
        ArtefactError: the bank is missing, unfinished or of an unknown schema version, or its manifest is damaged.
    """
    where = uris.join(uri, MANIFEST)
    if not storage.exists(where):
        if storage.exists(uris.join(uri, BUILDING)):
            raise ArtefactError(f"{uri}: this bank is not finished; run jobs/build_kernel_bank.py again to finish it")
        raise ArtefactError(f"{uri}: no kernel bank here (no {MANIFEST}); make one with jobs/build_kernel_bank.py")
    value = storage.read_json(where)
    if not isinstance(value, dict) or value.get("kind") != "kernel-bank":
        raise ArtefactError(f"{where}: not the manifest of a kernel bank")
    if value.get("schema_version") != SCHEMA:
        raise ArtefactError(
            f"{where}: schema version {value.get('schema_version')} is unknown to this version of the code, "
            f"which reads {SCHEMA}; use the code that wrote it or build the bank again"
        )
    try:
        manifest = Manifest.model_validate(unsealed(value, where))
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtefactError(f"{where}: damaged ({'.'.join(map(str, first['loc']))}: {first['msg']})") from error
    rows: Counter[Family] = Counter()
    for shard in manifest.shards:
        rows[shard.family] += shard.rows
    if rows != Counter(manifest.spec.counts):
        raise ArtefactError(f"{where}: damaged (its shards do not hold as many kernels as its spec says)")
    if bank_digest(manifest.spec.size, manifest.shards) != manifest.digest:
        raise ArtefactError(f"{where}: damaged (its digest does not match its list of shards)")
    return manifest


def write_manifest(uri: str, manifest: Manifest) -> None:
    """Write the manifest of a bank whose shards and codec all exist."""
    write_sealed(uris.join(uri, MANIFEST), manifest.model_dump(mode="json"))


def check_files(uri: str, manifest: Manifest) -> None:
    """Check, without reading them, that the files of a finished bank exist.

    Raises:
        ArtefactError: names the first file that is missing or has another size than in the manifest.
    """
    sizes: dict[str, int | None] = {record.name: record.bytes for record in manifest.shards}
    check_complete(uri, sizes | {CODEC: None}, _ADVICE)


def verify(uri: str | Path) -> Iterator[ShardRecord]:
    """Read every shard and the codec again and compare them with the manifest; yield each intact shard.

    Raises:
        ArtefactError: describes the first mismatch.
    """
    from kernels_bank.codec import KernelCodec

    manifest = read_manifest(uri)
    codec = uris.join(uri, CODEC)
    if storage.sha256_of(codec) != manifest.codec.sha256:
        raise ArtefactError(f"{codec}: its SHA-256 is not the manifest's; the file is damaged")
    if KernelCodec.load(codec).bank_digest != manifest.digest:
        raise ArtefactError(f"{codec}: was fitted to another bank")
    for record in manifest.shards:
        read_shard(str(uri), record)
        yield record


def _record(shard: Shard, data: bytes, content: str) -> ShardRecord:
    digest = hashlib.sha256(data).hexdigest()
    return ShardRecord(**shard.model_dump(), bytes=len(data), sha256=digest, content=content)


def _parse(data: bytes, where: str, rows: int = SHARD_ROWS) -> tuple[dict[str, Any], np.ndarray]:
    """Return the metadata of a shard's file, and its kernels, at most `rows`."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # Without Arrow's threads: one that still held `data` while Python exits would abort the process.
        file = parquet.ParquetFile(pa.BufferReader(data))
        if file.metadata.num_rows > rows:
            raise ValueError(f"{file.metadata.num_rows} rows")
        table = file.read(columns=["kernel"], use_threads=False)
        about = json.loads(table.schema.metadata[_METADATA_KEY])
        column = table.column("kernel").combine_chunks()
        side = round(column.type.list_size**0.5)
        return about, column.flatten().to_numpy().reshape(-1, side, side)
    except (pa.ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{where}: not a readable kernel shard ({' '.join(str(error).split())})") from error
