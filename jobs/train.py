"""Train a blind super-resolution model and register it. Running the same name again resumes it.

python jobs/train.py --config jobs/configs/NAME.yaml [--train.steps 1000 ...]
ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/train.py --config jobs/configs/NAME.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.cli import Command, run
from pipeline.config import RunConfig


class Train(Command, RunConfig):  # type: ignore[misc] # both carry a model_config
    """Train a blind super-resolution model on a Ray cluster, record it in MLflow, register the result."""

    config: Path | None = Field(None, description="YAML file of the run; flags and environment override it")
    check: bool = Field(False, description="validate config, data and digests, save a contact sheet; train nothing")
    verbose: bool = Field(False, description="show Ray's own output too")
    resume: Literal["auto", "changed", "never"] = Field(
        "auto", description="go on with a run of this name; changed: also with other settings or data; never: afresh"
    )


def main(command: Train) -> None:
    """Run the command."""
    config = command.settings(RunConfig)
    if command.check:
        from pipeline.training.check import check

        print(check(config, Path(f"{config.name}-check.png"), resume=command.resume))
        return
    from pipeline.training.fit import fit

    fitted = fit(config, resume=command.resume, verbose=command.verbose)
    done = "was finished before; nothing to do" if fitted.reused else "finished"
    names = fitted.tracking
    version = ", not registered"
    if fitted.version is not None:
        version = f": {names.model_name} version {fitted.version}, alias {names.alias}"
    print(f"run '{config.name}' {done}{version}")
    print(f"  weights   {fitted.model}")
    print(f"  tracking  {fitted.run.shown}  run {fitted.run.run_id}")


if __name__ == "__main__":
    run(Train, main)
