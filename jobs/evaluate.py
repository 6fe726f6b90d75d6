"""Compare a model with bicubic and with itself given the true kernel, over kernels and scales.

python jobs/evaluate.py --model URI --images DIR [--kernels benchmark|FILE] [--scales 2,3,4] --output URI
"""

from __future__ import annotations

from pydantic import Field

from pipeline.cli import Command, run
from pipeline.evaluation.settings import EvaluationSettings


class Evaluate(Command, EvaluationSettings):  # type: ignore[misc] # both carry a model_config
    """Compare bicubic, blind and non-blind restoration by PSNR and SSIM, for every kernel, scale and noise level."""

    output: str = Field(description="folder or s3:// prefix for results and pictures; resumes a killed run")
    check: bool = Field(False, description="load the model and look at the images; compute nothing")


def main(command: Evaluate) -> None:
    """Run the command."""
    from kernels_bank.runtime import folders
    from pipeline.evaluation import evaluate

    settings = command.settings(EvaluationSettings)
    if command.check:
        print(evaluate.planned(settings, command.output))
        return
    evaluate.run_evaluation(settings, command.output)
    print(
        f"results in {command.output}: "
        + ", ".join(name for name, _ in folders.list_files(command.output) if not name.startswith("."))
    )


if __name__ == "__main__":
    run(Evaluate, main)
