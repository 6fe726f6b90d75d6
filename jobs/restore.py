"""Restore photographs with a trained model.

python jobs/restore.py --input DIR|FILE|ZIP --output DIR --scale 2 [--model URI] [--kernel FILE] [--sigma auto|0.01]
"""

from __future__ import annotations

from pydantic import Field

from pipeline.cli import Command, run
from pipeline.inference.settings import RestoreSettings


class Restore(Command, RestoreSettings):  # type: ignore[misc] # both carry a model_config
    """Estimate each photograph's blur kernel and make it sharp and larger."""

    check: bool = Field(
        False,
        description="load everything, look at every image, say what would be done; write nothing. Exit status 1 if an "
        "image could not be restored",
    )


def main(command: Restore) -> None:
    """Run the command."""
    from pipeline.inference import batch

    settings = command.settings(RestoreSettings)
    if command.check:
        plan = batch.planned(settings)
        print(plan.text)
        plan.checked()
        return
    outcomes = batch.restore_files(settings)
    for outcome in outcomes:
        print(f"{outcome.name}: {'' if outcome.output else 'not restored: '}{outcome.note}")
    print(f"{len(batch.checked(outcomes))} images restored to {settings.output}")


if __name__ == "__main__":
    run(Restore, main)
