"""The peak memory of a restoration, above the memory that its process held before."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType

import torch

from pipeline.inference.allocator import give_back_free_memory

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets the high-water mark of resident memory
_MIB = 2**20


class PeakMemory:
    """Measure a block's additional peak memory: `with PeakMemory(device) as used`, then `used.mib`.

    On CUDA it is the peak of tensors (`max_memory_allocated`), on the CPU the growth of the process's resident memory.
    Free memory kept by the C library is returned first, since otherwise earlier work would make later work look free.
    `mib` is None on systems that do not report it (only Linux does).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.mib: float | None = None

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before: float | None = torch.cuda.memory_allocated(self._device) / _MIB
        else:
            give_back_free_memory()
            self._before = _resident("VmRSS") if _reset_peak() else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cuda = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) / _MIB if cuda else _resident("VmHWM")
        if self._before is not None and peak is not None:
            self.mib = max(0.0, peak - self._before)


def _reset_peak() -> bool:
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _resident(field: str) -> float | None:
    """Return a field of /proc/self/status in MiB."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None
