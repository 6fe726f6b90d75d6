"""Does this environment carry a run? Looks from here and from every node; exit status 1 if something would fail.

python jobs/doctor.py [--config jobs/configs/NAME.yaml] [--output URI --train.gpu ...] [--json]
ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/doctor.py --output s3://bucket/runs
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from kernels_bank.runtime.errors import JobFailedError
from pipeline.cli import Command, run
from pipeline.config import DataConfig, RunConfig, TrainConfig


class Doctor(Command, RunConfig):  # type: ignore[misc] # both carry a model_config
    """Check Ray, nodes, GPUs, storage and MLflow for a run of this config; changes nothing, leaves nothing behind."""

    config: Path | None = Field(None, description="YAML file of a run: its GPUs, CPUs, data and output are looked at")
    as_json: bool = Field(False, alias="json", description="print JSON instead of a table")
    name: str = "doctor"
    data: DataConfig = DataConfig(shards="", bank="")
    train: TrainConfig = TrainConfig(steps=1)


def main(command: Doctor) -> None:
    """Run the command."""
    from pipeline.doctor.examine import examine
    from pipeline.doctor.finding import failed, show

    findings = examine(command.settings(RunConfig))
    show(findings, as_json=command.as_json)
    if count := failed(findings):
        raise JobFailedError(
            f"{count} of {len(findings)} checks say that a run would fail; the table names the remedies"
        )


if __name__ == "__main__":
    run(Doctor, main)
