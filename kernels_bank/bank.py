"""An opened bank: its kernels as one array that all processes of a node share."""

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

    There are two ways to share them. `open` maps one uncompressed file of the node's cache, so processes that open the
    same bank share its pages. Alternatively, call `ray.put(bank)` once and pass the reference to tasks: `ray.get`
    returns a bank whose arrays are in the object store, read-only and without a copy.

    Attributes:
        kernels: (N, k, k) float32, read-only, of sum 1; >= 0 except for the lobes of composites.
        digest: identity of the kernels; codecs, checkpoints and models carry it.
        codec: the bank's kernel code.
        spec: spec of the bank; its counts determine the family of each kernel.
    """

    kernels: np.ndarray
    digest: str
    codec: KernelCodec
    spec: KernelBankSpec

    def __len__(self) -> int:
        return len(self.kernels)

    @property
    def family(self) -> np.ndarray:
        """Return the family of each kernel, (N,), made on request: up to 64 bytes per kernel."""
        counts = {family: count for family, count in self.spec.counts.items() if count}
        return np.repeat(list(counts), list(counts.values()))

    @classmethod
    def open(cls, uri: str | Path) -> KernelBank:
        """Open a bank at a path or URI.

        The first call on a node checks every shard and unpacks the kernels into a cache folder named by the bank's
        digest (`BLINDSR_CACHE`, otherwise `$XDG_CACHE_HOME/blind-sr`, otherwise `~/.cache/blind-sr`). The first call
        after a boot, or after the file was touched, compares it with the manifest and unpacks it again if it is
        damaged. Later calls only read the manifest and the codec.

        Raises:
            ArtefactError: the bank is missing, unfinished, damaged, or of an unknown schema version.
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
    """Return the folder of unpacked banks on this node."""
    if folder := os.environ.get("BLINDSR_CACHE"):
        return uris.at_home(folder)
    return uris.at_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "blind-sr"


def _cached_kernels(uri: str, manifest: Manifest) -> np.ndarray:
    """Map all kernels from the node's cache, which is filled first if they are missing or damaged."""
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
        # On a read-only node every process has its own copy.
        return np.concatenate([read_shard(uri, shard) for shard in manifest.shards])
    # A plain array over the mapping is pickled as a buffer, so ray.put copies it once and ray.get never.
    return np.asarray(kernels)


def _filled(uri: str, manifest: Manifest, path: Path) -> np.ndarray:
    """Unpack the bank into the cache and map it, while holding the lock."""
    if path.exists():
        print(f"{path}: is not what {uri} holds (damaged); it is unpacked again", file=sys.stderr, flush=True)
    for left in path.parent.glob(f".{path.name}.*"):  # left by a process that was killed
        left.unlink(missing_ok=True)
    _unpack(uri, manifest, path)
    if (kernels := cache.mapped(path, manifest)) is None:
        raise ArtefactError(f"{path}: does not keep what is written to it; its disk is damaged, set BLINDSR_CACHE")
    return kernels


def _unpack(uri: str, manifest: Manifest, path: Path) -> None:
    """Check all shards and write their kernels as one .npy file, which appears once it is complete."""
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
    """Let one process of the node at a time enter the block; the lock is freed if its process dies."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
