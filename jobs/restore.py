"""Restore photographs with a trained model.

python jobs/restore.py --model URI --input DIR|FILE --output DIR --scale 2 [--kernel FILE] [--sigma auto|0.01]
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.cli import Command, run
from pipeline.config import Scale, Sigma


class Restore(Command):
    """Estimate each photograph's blur kernel and make it sharp and larger."""

    model: str = Field(description="models:/NAME@ALIAS, models:/NAME/VERSION, a model folder, or a USRNet .pth")
    input: str = Field(description="an image, or a folder, zip or s3:// prefix of images")
    output: str = Field(description="folder or s3:// prefix for the results")
    scale: Scale = Field(2, description="factor by which the image becomes larger")
    sigma: Literal["auto"] | Sigma = Field("auto", description="noise level, [0, 1] scale: 2.55/255 is 0.01")
    kernel: str | None = Field(None, description="file of the blur kernel if it is known (.npy, .npz, .mat, .png)")
    overwrite: bool = Field(False, description="replace results that are there")


def main(command: Restore) -> None:
    """Run the command."""
    from pipeline.inference.files import restore_files

    outcomes = restore_files(**command.model_dump(exclude={"input"}), source=command.input)
    for outcome in outcomes:
        print(f"{outcome.name}: {outcome.note}")
    done = sum(bool(outcome.output) for outcome in outcomes)
    print(f"{done} of {len(outcomes)} images restored to {command.output}")


if __name__ == "__main__":
    run(Restore, main)
