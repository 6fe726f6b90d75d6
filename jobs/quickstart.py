"""The whole way on six bundled photographs in a few minutes: kernels, shards, training, registry, table, picture.

python jobs/quickstart.py [--output DIR]
"""

from __future__ import annotations

import itertools
from pathlib import Path

from pydantic import Field

from jobs.train import Train
from kernels_bank.runtime.redact import mask_uri
from pipeline.cli import Command, parse, run
from pipeline.config import RunConfig

_CONFIGS = Path(__file__).parent / "configs"


class Quickstart(Command):
    """Build a kernel bank and shards, train, register, evaluate and restore, all on this machine."""

    output: str = Field("runs", description="folder for everything that is made")
    check: bool = Field(False, description="look at everything that is needed and say what would be done; make nothing")


def main(command: Quickstart) -> None:
    """Run the command."""
    from pipeline.quickstart import planned, quickstart

    places = {
        "--output": command.output,
        "--data.shards": f"{command.output}/quickstart/shards",
        "--data.bank": f"{command.output}/quickstart/bank",
    }
    config, protocol = _config("quickstart.yaml", places), _CONFIGS / "protocols" / "quickstart.yaml"
    if command.check:
        print(planned(config, protocol))
        return
    result = quickstart(config, protocol)
    stem = result.restored / f"{result.lr.stem}-x2"
    print("\nEverything lies in", result.home)
    print(f"  picture   {stem}-compare.png  (input | bicubic | restored | kernel)")
    print(f"  table     {result.home}/evaluation-v{result.version}/psnr-by-kernel.png")
    print(f"  model     {result.model} = version {result.version}")
    print(f"Go on with\n  .venv/bin/mlflow ui --backend-store-uri {mask_uri(result.tracking_uri)}")
    print(f"  .venv/bin/python jobs/restore.py --model {result.model} --input YOUR.jpg --output restored --scale 2")
    print("  .venv/bin/python jobs/registry.py list")


def _config(name: str, places: dict[str, str]) -> RunConfig:
    """Return a training config with its places moved below --output."""
    train = parse(Train, ["--config", str(_CONFIGS / name), *itertools.chain(*places.items())])
    return train.settings(RunConfig)


if __name__ == "__main__":
    run(Quickstart, main)
