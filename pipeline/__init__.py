"""The data-and-training pipeline for blind image super-resolution."""

from __future__ import annotations

import os

# Ray Train reads these at import, its controller and workers at their start: they are set before Ray is started.
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
# How often Ray Train asks its workers for news. Until it does, a checkpoint does not count and the next one waits.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
if os.environ.get("RAY_ADDRESS", "").strip() in ("", "local"):
    # A Ray that has this machine alone: nobody takes its nodes away, so nothing has to watch for that.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
