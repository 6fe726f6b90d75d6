"""What training a config costs, without running it: parameters, operations, memory, hours, dollars.

python jobs/plan.py                                        the shipped configs
python jobs/plan.py --config jobs/configs/NAME.yaml [--model.restorer.unfoldings 8 --data.patch 128 --memory-gib 24 ...]
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

from pydantic import Field

from pipeline.cli import Command, parse, run
from pipeline.config import DataConfig, RunConfig, TrainConfig


class Plan(Command, RunConfig):  # type: ignore[misc] # both carry a model_config
    """Compute parameters, operations and memory of a training step, on tensors that hold nothing; start nothing."""

    config: Path | None = Field(
        None, description="YAML file of a run; without one, all shipped ones, under the same flags"
    )
    name: str = "plan"
    data: DataConfig = DataConfig(shards="", bank="")
    train: TrainConfig = TrainConfig(steps=1)
    kernel_size: int = Field(21, ge=3, description="side of the bank's kernels")
    components: int = Field(64, ge=1, description="length of the bank's kernel code")
    memory_gib: float = Field(80, gt=0, description="memory of one card")
    tflops: float = Field(40, ge=0.001, description="operations a second that the card sustains on such networks, 1e12")
    cards: int = Field(8, ge=1, description="number of cards that the hours are told for, beside one")
    dollars: float = Field(2.5, ge=0, description="price of an hour of one card")


def main(command: Plan) -> None:
    """Run the command."""
    from pipeline.training.planning.table import Card, plan_table

    configs: list[RunConfig] = [command]
    if command.config is None:
        shipped = sorted(Path(__file__).with_name("configs").glob("*.yaml"))
        with contextlib.redirect_stderr(io.StringIO()):  # what the flags and variables do was said once
            configs = [parse(Plan, [*sys.argv[1:], "--config", str(path)]) for path in shipped]
    card = Card(command.memory_gib, command.tflops, command.cards, command.dollars)
    print(plan_table(configs, card, kernel_size=command.kernel_size, components=command.components))


if __name__ == "__main__":
    run(Plan, main)
