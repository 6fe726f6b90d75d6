"""Descriptions of a bank for the command line."""

from __future__ import annotations

from pathlib import Path

from kernels_bank.runtime import folders, uris
from kernels_bank.runtime.output import check_own
from kernels_bank.runtime.progress import Progress
from kernels_bank.spec import KernelBankSpec
from kernels_bank.store import plan, read_manifest, verify


def described(uri: str | Path) -> str:
    """Describe a complete bank: counts, digests, codec, settings and the codec's losses."""
    manifest = read_manifest(uri)
    spec, codec = manifest.spec, manifest.codec
    size = sum(shard.bytes for shard in manifest.shards)
    lines = {
        "bank": str(uri),
        "kernels": f"{_counts(spec)}, {spec.size} x {spec.size} float32",
        "stored": f"{len(manifest.shards)} shards, {size / 2**20:.1f} MiB",
        "digest": manifest.digest,
        "codec": f"{codec.components} components hold {codec.explained_variance:.4%} of the variance, {codec.digest}",
        "spec": spec.model_dump_json(exclude_none=True),
    }
    described = [f"{name:8} {text}" for name, text in lines.items()]
    head = "".join(f"{loss.components:>8}" for loss in codec.losses)
    held = "".join(f"{loss.explained_variance:>8.1%}" for loss in codec.losses)
    table = [f"{'components':30}{head}", f"{'variance held':30}{held}"]
    table += [
        f"{family + ', decoded PSNR':30}" + "".join(f"{loss.psnr[family]:>8.1f}" for loss in codec.losses)
        for family in codec.losses[0].psnr
    ]
    return "\n".join([*described, "", *table])


def planned(spec: KernelBankSpec, uri: str | Path) -> str:
    """Describe what a build would do. Raises the same errors as the build before it starts."""
    from kernels_bank.generate import KIND, present

    target = uris.absolute(uri)
    if present(spec, target):
        return f"{target}: this bank is complete; nothing to do"
    check_own(target, KIND)
    there = {name for name, _ in folders.list_files(target)}
    shards = plan(spec)
    kept = sum(shard.name in there for shard in shards)
    size = spec.count * spec.size**2 * 4 / 2**20
    found = f"; {kept} are there and will be checked" if kept else ""
    return f"{target}: would build {_counts(spec)} in {len(shards)} shards, {size:.0f} MiB before compression{found}"


def verified(uri: str | Path) -> str:
    """Verify a bank with progress. Raises ArtefactError at the first error."""
    manifest = read_manifest(uri)
    with Progress("verify", total=manifest.spec.count, unit="kernel") as bar:
        for shard in verify(uri):
            bar.advance(shard.rows)
    return f"{uri}: all {len(manifest.shards)} shards, the codec and the manifest are as they were written"


def _counts(spec: KernelBankSpec) -> str:
    parts = [f"{count:,} {family}" for family, count in spec.counts.items() if count]
    return " + ".join(parts) + " kernels"
