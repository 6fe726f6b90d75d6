"""Gauges for Prometheus: every Ray node exports those of its processes; without Ray nothing happens."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

# Ray exports gauges as ray_<name>. The progress of long work in any job, tagged by unit ("kernels", "train", ...):
DONE, TOTAL = "blindsr_progress_done", "blindsr_progress_total"


def set_gauge(name: str, value: float, tags: Mapping[str, str]) -> None:
    """Set a gauge whose name starts with `blindsr_`; `tags` must always have the same keys for one name."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        _gauge(name, tuple(sorted(tags))).set(float(value), tags=dict(tags))


@functools.lru_cache
def _gauge(name: str, keys: tuple[str, ...]) -> Any:  # noqa: ANN401 - ray is imported late
    from ray.util.metrics import Gauge

    return Gauge(name, tag_keys=keys)
