"""The description of a training run: built once by the driver, read by all that starts, trains, saves and registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config import RunConfig
from pipeline.tracking.runs import RunRef


@dataclass(frozen=True)
class TrainingRun:
    """Hold the settings, data digests and folder of a run."""

    config: RunConfig
    digests: dict[str, str]  # of shards and bank
    home: str  # URI of the run's folder
    changed: bool  # whether to accept a checkpoint made from other data


@dataclass(frozen=True)
class WorkerContext:
    """Hold what the driver passes to every worker."""

    run: TrainingRun
    start: Any  # reference to the start.InitialWeights of a new run
    tracked: RunRef  # where rank 0 records
    channel: Any  # handle of training.channel.DriverChannel
    data_cpus: float  # logical CPUs for the data tasks of all workers together
