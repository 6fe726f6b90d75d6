"""What machine this is, as JSON: `python -m tests.cuda.machine`. Runs with the standard library alone."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
from importlib import metadata

_OF_PYDANTIC = ("pydantic-core", "annotated-types", "typing-inspection", "typing-extensions")
TIERS = {
    1: ("torch", "numpy", "scipy", "pydantic", "safetensors", "opencv-python-headless", *_OF_PYDANTIC),
    2: ("ray", "mlflow", "pyarrow", "pydantic-settings", "webdataset", "rich", "boto3", "PyYAML", "psutil"),
}
_EITHER = {"opencv-python-headless": ("opencv-python-headless", "opencv-python", "opencv-contrib-python")}
_LEAST_TORCH = (2, 11)


def version_of(package: str) -> str | None:
    """Return the installed version of a package, or of one that is as good; None without one."""
    for name in _EITHER.get(package, (package,)):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def missing(tier: int) -> list[str]:
    """List what a tier needs and this Python does not have."""
    absent = [package for level in range(1, tier + 1) for package in TIERS[level] if version_of(package) is None]
    torch = version_of("torch")
    if torch and tuple(int(part) for part in torch.split("+")[0].split(".")[:2]) < _LEAST_TORCH:
        absent.append(f"torch {'.'.join(map(str, _LEAST_TORCH))} or newer (here is {torch})")
    return absent


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _told_by_the_driver(command: list[str]) -> dict[str, object]:
    """Return the cards that the driver lists, or why it does not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return {"nvidia-smi": "no answer in 60 s"}
    cards = "; ".join(line for line in done.stdout.splitlines() if line)
    if done.returncode == 0 and cards:
        return {"nvidia-smi": cards}
    return {"nvidia-smi failed": (done.stderr.strip() or done.stdout.strip() or "it lists no cards")[:200]}


def describe() -> dict[str, object]:
    """Describe the machine, its cards and packages."""
    found: dict[str, object] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "CPUs": len(os.sched_getaffinity(0)),
        "memory": f"{_memory_gib():.0f} GiB",
        "packages": ", ".join(
            f"{p} {v}" for level in TIERS.values() for p in level if p not in _OF_PYDANTIC and (v := version_of(p))
        ),
    }
    if (smi := shutil.which("nvidia-smi")) is not None:
        command = [smi, "--query-gpu=name,driver_version,memory.total,pcie.link.gen.max", "--format=csv,noheader"]
        found |= _told_by_the_driver(command)
    if "torch" in missing(1):
        return found
    import torch

    found["CUDA of torch"] = torch.version.cuda or "none: a build for CPUs"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["card"] = f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        found["compute capability"] = f"{properties.major}.{properties.minor}"
        found["cuDNN"] = torch.backends.cudnn.version()
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


if __name__ == "__main__":
    print(json.dumps(describe()))
