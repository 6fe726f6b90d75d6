"""The data-and-training pipeline for blind image super-resolution."""

from __future__ import annotations

import os

# Ray Train reads these at import, its controller and workers when they start, so they are set before Ray starts.
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
# How often Ray Train polls its workers. Until it does, a checkpoint does not count and the next one waits.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
if os.environ.get("RAY_ADDRESS", "").strip() in ("", "local"):
    # This Ray runs on this machine alone. Its node is not preempted, so no watcher for preemption is needed.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
