"""Look models up in the registry, promote them, take them in and out.

    python jobs/registry.py list
    python jobs/registry.py show blind-sr-x2 | blind-sr-x2@champion | blind-sr-x2/3
    python jobs/registry.py promote blind-sr-x2 3 [--alias champion] [--tolerance 0.05] [--force REASON]
    python jobs/registry.py rollback blind-sr-x2 [--alias champion]
    python jobs/registry.py compare blind-sr-x2@champion blind-sr-x2@candidate
    python jobs/registry.py export blind-sr-x2@champion --output DIR [--format onnx|torch-export --scale 2]
    python jobs/registry.py import-weights usrnet.pth --name usrnet
    python jobs/registry.py gc [blind-sr-x2] [--keep 5] [--older-than 30] [--delete]

Each takes --json for machines, and --tracking-uri for another store than MLFLOW_TRACKING_URI or runs/mlflow.db.
"""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import CliSubCommand

from kernels_bank.runtime.errors import BadRequestError
from pipeline.cli import Command, run
from pipeline.registry import commands


class Registry(Command):
    """Look models up in the registry, promote them, take them in and out."""

    list_: CliSubCommand[commands.ListModels] = Field(alias="list", description="all models")
    show: CliSubCommand[commands.Show] = Field(description="a model, or one version of it")
    promote: CliSubCommand[commands.Promote] = Field(description="give an alias to a version that is not worse")
    rollback: CliSubCommand[commands.Rollback] = Field(description="give an alias back to who had it before")
    compare: CliSubCommand[commands.Compare] = Field(description="two versions side by side")
    export: CliSubCommand[commands.Export] = Field(description="a version as a model folder, .pt2 or .onnx")
    import_weights: CliSubCommand[commands.ImportWeights] = Field(description="published or own weights as a version")
    gc: CliSubCommand[commands.Gc] = Field(description="versions that nobody needs any more")


def main(command: Registry) -> None:
    """Run the chosen command and print its answer."""
    request = next((value for _, value in command if value is not None), None)
    if request is None:
        raise BadRequestError("say what to do: list, show, promote, rollback, compare, export, import-weights or gc")
    from pipeline.registry.report import render

    render(request, request.answer())


if __name__ == "__main__":
    run(Registry, main)
