"""Numbers for Prometheus: every Ray node exports what the processes on it set here; without Ray nothing happens."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

# Ray exports them as ray_<name>. Long work of any job, by what it counts ("kernels", "write", "train", ...):
DONE, TOTAL = "blindsr_progress_done", "blindsr_progress_total"


def set_gauge(name: str, value: float, tags: Mapping[str, str]) -> None:
    """Set a number under a name that starts with `blindsr_`; `tags` always has the same keys for one name."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        _gauge(name, tuple(sorted(tags))).set(float(value), tags=dict(tags))


@functools.lru_cache
def _gauge(name: str, keys: tuple[str, ...]) -> Any:  # noqa: ANN401 - ray is imported late
    from ray.util.metrics import Gauge

    return Gauge(name, tag_keys=keys)
