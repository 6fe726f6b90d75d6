"""Facts of a node, collected in a Ray task there and judged elsewhere."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import time
import uuid
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kernels_bank.runtime import storage, uris

# Packages whose objects a run's processes exchange, or on which results depend.
PACKAGES = ("ray", "torch", "numpy", "pyarrow", "mlflow", "webdataset", "opencv-python-headless", "safetensors")
_PROBE_MIB = 16


@dataclass(frozen=True)
class Facts:
    """Hold the facts of one node; sizes in bytes."""

    host: str
    versions: dict[str, str]
    shm_total: int
    open_files: int  # soft limit of this process
    max_processes: int
    disk_free_share: float  # of the disk that Ray spills to
    disk_path: str
    nvidia_devices: int  # number of device files, known to Ray or not


@dataclass(frozen=True)
class StorageSpeed:
    """Hold the speed of one folder or prefix, seen from one node."""

    latency_ms: float  # write and read of a small object, median of five
    write_mib_s: float
    read_mib_s: float
    token: str = field(repr=False)  # name of the small object, which is kept for the other nodes to find


def facts() -> Facts:
    """Collect the facts of the machine or container this runs in."""
    spill = os.environ.get("RAY_TMPDIR", "/tmp")
    disk, shm = shutil.disk_usage(spill), Path("/dev/shm")
    return Facts(
        host=socket.gethostname(),
        versions={"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        shm_total=shutil.disk_usage(shm).total if shm.exists() else 0,
        open_files=_limit(resource.RLIMIT_NOFILE),
        max_processes=_limit(resource.RLIMIT_NPROC),
        disk_free_share=disk.free / disk.total,
        disk_path=spill,
        nvidia_devices=len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()]),
    )


def clock() -> float:
    """Return the seconds since 1970 by this node's clock."""
    return time.time()


def cuda_device() -> str:
    """Return the name of the GPU that Ray gave to this task, after using it. Raises RuntimeError if torch cannot."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no CUDA device")
    total = float(torch.ones(8, device="cuda").sum())
    if total != 8:
        raise RuntimeError(f"8 ones sum up to {total}")
    return torch.cuda.get_device_name(0)


def probe_storage(folder: str) -> StorageSpeed:
    """Write below `folder` and read back; one small object is left there. Raises OSError or ArtefactError."""
    token, times = uuid.uuid4().hex, []
    for _ in range(5):
        started = time.perf_counter()
        storage.write_bytes(uris.join(folder, token), token.encode())
        storage.read_bytes(uris.join(folder, token))
        times.append(time.perf_counter() - started)
    block, large = os.urandom(_PROBE_MIB * 2**20), uris.join(folder, f"{token}.large")
    started = time.perf_counter()
    storage.write_bytes(large, block)
    wrote = time.perf_counter()
    same = storage.read_bytes(large) == block
    read = time.perf_counter()
    storage.remove_file(large)
    if not same:
        raise OSError("what was read is not what was written")
    return StorageSpeed(1000 * sorted(times)[2], _PROBE_MIB / (wrote - started), _PROBE_MIB / (read - wrote), token)


def can_read(uri: str, sha256: str) -> bool:
    """Check whether this node sees the same file."""
    return storage.exists(uri) and storage.sha256_of(uri) == sha256


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _limit(kind: int) -> int:
    soft = resource.getrlimit(kind)[0]
    return 2**31 if soft == resource.RLIM_INFINITY else soft
