"""A bank, opened: its kernels as one array that all processes of a node share."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernels_bank import cache
from kernels_bank.codec import KernelCodec
from kernels_bank.runtime import os_errors, storage, uris
from kernels_bank.runtime.errors import ArtefactError
from kernels_bank.spec import KernelBankSpec
from kernels_bank.store import CODEC, Manifest, read_manifest, read_shard

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, eq=False)
class KernelBank:
    """Hold the kernels of a complete bank.

    Two ways to share them. `open` maps one uncompressed file of the node's cache: processes that open the same bank
    share its pages. Or `ray.put(bank)` once and hand the reference to tasks: `ray.get` gives back a bank whose
    arrays lie in the object store, read-only and without a copy.

    Attributes:
        kernels: (N, k, k) float32, read-only, of sum 1; >= 0 but for the lobes of composites.
        digest: identity of the kernels; codecs, checkpoints and models carry it.
        codec: the bank's kernel code.
        spec: what the bank was built from; its counts say of which family a kernel is.
    """

    kernels: np.ndarray
    digest: str
    codec: KernelCodec
    spec: KernelBankSpec

    def __len__(self) -> int:
        return len(self.kernels)

    @property
    def family(self) -> np.ndarray:
        """Return the family of each kernel, (N,): up to 64 bytes a kernel, made when asked for."""
        counts = {family: count for family, count in self.spec.counts.items() if count}
        return np.repeat(list(counts), list(counts.values()))

    @classmethod
    def open(cls, uri: str | Path) -> KernelBank:
        """Open a bank at a path or URI.

        The first opening on a node checks every shard and unpacks the kernels into a cache folder named by the
        bank's digest (`BLINDSR_CACHE`, else `$XDG_CACHE_HOME/blind-sr`, else `~/.cache/blind-sr`). The first one after
        a boot, or after the file was touched, compares it with the manifest and unpacks it again if it is damaged.
        Later ones only read the manifest and the codec.

        Raises:
            ArtefactError: missing, unfinished, damaged, or of an unknown schema version.
        """
        manifest = read_manifest(uri)
        data = storage.read_bytes(uris.join(uri, CODEC), limit=KernelCodec.MAX_BYTES)
        if hashlib.sha256(data).hexdigest() != manifest.codec.sha256:
            raise ArtefactError(f"{uris.join(uri, CODEC)}: its SHA-256 is not the manifest's; the file is damaged")
        codec = KernelCodec.from_bytes(data, uris.join(uri, CODEC))
        if codec.digest != manifest.codec.digest or codec.bank_digest != manifest.digest:
            raise ArtefactError(f"{uris.join(uri, CODEC)}: is not the codec of this bank; build the bank again")
        return cls(
            kernels=_cached_kernels(str(uri), manifest),
            digest=manifest.digest,
            codec=codec,
            spec=manifest.spec,
        )


def cache_folder() -> Path:
    """Return where unpacked banks are kept on this node."""
    if folder := os.environ.get("BLINDSR_CACHE"):
        return uris.at_home(folder)
    return uris.at_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "blind-sr"


def _cached_kernels(uri: str, manifest: Manifest) -> np.ndarray:
    """Map all kernels from the node's cache, which is filled when they are not in it, or not whole."""
    path = cache_folder() / "banks" / f"{manifest.digest}.npy"
    try:
        if (kernels := cache.mapped(path, manifest)) is None:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _lock(path.with_suffix(".lock")):
                if (kernels := cache.mapped(path, manifest)) is None:
                    kernels = _filled(uri, manifest, path)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        # A read-only node: every process has its own copy.
        return np.concatenate([read_shard(uri, shard) for shard in manifest.shards])
    # A plain array over the mapping: pickled as a buffer, so ray.put copies it once and ray.get never.
    return np.asarray(kernels)


def _filled(uri: str, manifest: Manifest, path: Path) -> np.ndarray:
    """Unpack the bank into the cache and map it; nobody else does so meanwhile."""
    if path.exists():
        print(f"{path}: is not what {uri} holds (damaged); it is unpacked again", file=sys.stderr, flush=True)
    for left in path.parent.glob(f".{path.name}.*"):  # of a process that was killed
        left.unlink(missing_ok=True)
    _unpack(uri, manifest, path)
    if (kernels := cache.mapped(path, manifest)) is None:
        raise ArtefactError(f"{path}: does not keep what is written to it; its disk is damaged, set BLINDSR_CACHE")
    return kernels


def _unpack(uri: str, manifest: Manifest, path: Path) -> None:
    """Write the kernels of all shards, each checked, as one .npy file; it appears when it is complete."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    spec = manifest.spec
    needed = 4 * spec.count * spec.size**2
    if shutil.disk_usage(path.parent).free < needed:
        raise ArtefactError(
            f"{path.parent}: {needed / 2**20:.0f} MiB are needed to unpack {uri}; free some or set BLINDSR_CACHE"
        )
    try:
        with os_errors.open_named(temporary, "wb", shown=path) as stream:
            header = {"descr": "<f4", "fortran_order": False, "shape": (spec.count, spec.size, spec.size)}
            np.lib.format.write_array_header_1_0(stream, header)
            for shard in manifest.shards:
                stream.write(np.ascontiguousarray(read_shard(uri, shard), dtype="<f4").data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        storage.sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process of the node at a time; the lock goes with the process that holds it."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
