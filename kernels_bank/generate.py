"""The build of a bank: one Ray Data task per shard, in any order, on any node; codec and manifest at the end.

A shard is a pure function of the spec and its range, and is written atomically. So a killed build can simply be run
again: existing intact shards are read instead of drawn.
"""

from __future__ import annotations

import functools
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from kernels_bank.codec import KernelCodec, components_for
from kernels_bank.codec_quality import draw_samples, measure
from kernels_bank.runtime import cluster, storage, uris
from kernels_bank.runtime.errors import ArtefactError, BadRequestError, JobFailedError
from kernels_bank.runtime.lease import Lease
from kernels_bank.runtime.output import not_made_again, note_files, own_output, remove_leftovers
from kernels_bank.runtime.progress import Progress
from kernels_bank.sampling import draw_range
from kernels_bank.spec import KernelBankSpec
from kernels_bank.store import (
    BUILDING,
    CODEC,
    MANIFEST,
    CodecRecord,
    Manifest,
    Shard,
    ShardRecord,
    bank_digest,
    check_files,
    find_shard,
    law_digest,
    plan,
    read_manifest,
    write_manifest,
    write_shard,
)

KIND = "kernel bank"


def build_bank(spec: KernelBankSpec, uri: str | Path, *, previews: bool = True) -> Manifest:
    """Draw, store and encode a bank. An interrupted build is finished; a complete bank is left as it is.

    Args:
        spec: spec of the bank.
        uri: folder that is new, empty, or holds the same bank (complete or not).
        previews: whether to write pictures next to the manifest, too.

    Raises:
        ArtefactError: `uri` holds another bank.
        BadRequestError: `uri` cannot be written to.
        JobFailedError: a shard could not be made or written; finished shards are kept.
    """
    uri = uris.absolute(uri)
    if (existing := present(spec, uri)) is not None:
        return existing
    with own_output(uri, KIND) as lease:
        # Another job may have finished the bank meanwhile.
        return present(spec, uri) or _build(spec, uri, lease, previews=previews)


def _build(spec: KernelBankSpec, uri: str, lease: Lease, *, previews: bool) -> Manifest:
    storage.write_json(uris.join(uri, BUILDING), {"spec": spec.model_dump(mode="json")})
    note_files(uri, [shard.name for shard in plan(spec)])
    records, total, outer = _build_shards(spec, uri)
    digest = bank_digest(spec.size, records)
    full = _fit_codec(spec, total, outer, digest)
    lease.check()
    codec = full.truncated(components_for(full.spectrum, spec.components, spec.explained_variance))
    codec.save(uris.join(uri, CODEC))
    samples = draw_samples(spec)
    losses = measure(samples, full, codec.components)
    if previews:
        from kernels_bank.preview import write_previews

        write_previews(samples, full, codec.components, losses, uri)
    manifest = Manifest(
        spec=spec,
        digest=digest,
        shards=records,
        codec=CodecRecord(
            sha256=storage.sha256_of(uris.join(uri, CODEC)),
            digest=codec.digest,
            components=codec.components,
            explained_variance=codec.explained_variance,
            losses=losses,
        ),
        made_with={name: version(name) for name in ("numpy", "pyarrow", "ray")},
    )
    lease.check()
    # Readers of `kernels-*.parquet` would find files of an earlier, larger attempt.
    remove_leftovers(uri, {record.name for record in records})
    write_manifest(uri, manifest)
    storage.remove_file(uris.join(uri, BUILDING))
    return manifest


def present(spec: KernelBankSpec, uri: str) -> Manifest | None:
    """Return the manifest if exactly this bank is complete at `uri`; None if it has to be built.

    Raises:
        ArtefactError: `uri` holds another bank, or a damaged one.
        OSError: `uri` cannot be reached.
    """
    if not storage.exists(uris.join(uri, MANIFEST)):
        return None
    manifest = read_manifest(uri)
    if manifest.spec != spec:
        different = [n for n in KernelBankSpec.model_fields if getattr(spec, n) != getattr(manifest.spec, n)]
        raise ArtefactError(
            f"{uri}: holds another bank (it differs in {', '.join(different)}); choose another --output or delete it"
        )
    check_files(uri, manifest)
    return manifest


def _build_shards(spec: KernelBankSpec, uri: str) -> tuple[list[ShardRecord], np.ndarray, np.ndarray]:
    """Build all shards; return them with the sum and the sum of outer products of their kernels."""
    cluster.connect()
    import ray
    from ray.exceptions import RayTaskError

    from kernels_bank.runtime.rows import rows_of

    shards = plan(spec)
    rows = [{"shard": shard.model_dump_json(), "spec": spec.model_dump_json()} for shard in shards]
    # In the order of the plan, so that the sums, and so the codec, do not depend on which task ended first. Each result
    # is added on arrival: those of 2,500 shards together would take 4 GB.
    records: list[ShardRecord] = []
    total, outer = np.zeros(spec.size**2), np.zeros((spec.size**2, spec.size**2))
    graph = ray.data.from_items(rows, override_num_blocks=len(rows)).map(functools.partial(build_shard, uri=uri))
    graph.context.execution_options.preserve_order = True
    try:
        with Progress("kernels", total=spec.count, unit="kernel") as bar:
            for row in rows_of(graph):
                records.append(ShardRecord.model_validate_json(row["record"]))
                total += row["total"]
                outer += row["outer"]
                bar.advance(records[-1].rows, note=f"{len(records)} of {len(shards)} shards")
    except (BadRequestError, JobFailedError, RayTaskError) as error:
        cause = error.cause if isinstance(error, RayTaskError) else None
        reason = str(cause or error).strip().splitlines()[0]
        raise JobFailedError(
            f"after {len(records)} of {len(shards)} shards: {reason}; the same command resumes from there"
        ) from error
    return records, total, outer


def _fit_codec(spec: KernelBankSpec, total: np.ndarray, outer: np.ndarray, digest: str) -> KernelCodec:
    """Fit the codec with all components in a Ray task, which has one thread: the bits depend on the thread count."""
    import ray

    def fit() -> KernelCodec:
        return KernelCodec.from_moments(
            spec.count,
            total,
            outer,
            components=spec.size**2,
            standardize=spec.standardize,
            bank_digest=digest,
            signed=spec.signed,
        )

    return ray.get(ray.remote(num_cpus=1)(fit).remote())


def build_shard(row: dict[str, Any], uri: str) -> dict[str, Any]:
    """Take the existing shard, or draw and write it; return its record and its moments. Runs in a task."""
    spec, shard = KernelBankSpec.model_validate_json(row["spec"]), Shard.model_validate_json(row["shard"])
    law = law_digest(spec, shard.family)
    found = find_shard(uri, shard, law)
    if found:
        record, kernels = found
    else:
        kernels, parameters = draw_range(spec, shard.family, shard.start, shard.start + shard.rows)
        try:
            with not_made_again(uri):
                record = write_shard(uri, shard, law, kernels, parameters)
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())
            raise JobFailedError(f"{uris.join(uri, shard.name)}: cannot be written ({reason})") from error
    flat = kernels.reshape(len(kernels), -1).astype(np.float64)
    return {
        "record": record.model_dump_json(),
        "total": flat.sum(axis=0),
        "outer": flat.T @ flat,
    }
