"""Restore photographs over HTTP, and on a page, with a trained model.

python jobs/serve.py [--model shipped:blind-sr-camera|models:/NAME@ALIAS] [--host 127.0.0.1] [--port 8000]
"""

from __future__ import annotations

from pydantic import Field

from pipeline.cli import Command, run
from pipeline.serving.settings import ServeSettings


class Serve(Command, ServeSettings):  # type: ignore[misc] # both carry a model_config
    """Serve POST /restore, which takes a photograph and gives it back sharp and larger; / is a page that does so."""

    check: bool = Field(False, description="load the model, try the address, say what would be served; start nothing")


def main(command: Serve) -> None:
    """Run the command."""
    from pipeline.serving import serve

    settings = command.settings(ServeSettings)
    if command.check:
        print(serve.planned(settings))
        return
    serve.serve(settings)


if __name__ == "__main__":
    run(Serve, main)
