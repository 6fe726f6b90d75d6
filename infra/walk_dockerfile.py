"""Where no Docker is: the Dockerfile's install steps in an empty virtual environment, then every entry point's --help.

    python infra/walk_dockerfile.py     minutes; ends with status 0 when the image would work

The RUN lines of the first stage are taken from infra/Dockerfile itself, with /opt/venv and /app in a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
# The purpose of the image; each module must be importable.
MODULES = (
    "pipeline.training.fit",
    "pipeline.evaluation.compute",
    "pipeline.inference",
    "pipeline.doctor.examine",
    "pipeline.data.shards",
    "pipeline.quickstart",
    "kernels_bank.generate",
    "psycopg2",
    "mlflow.server.auth",
)


def steps() -> list[tuple[str, str]]:
    """Read (instruction, text) of the first stage, continued lines joined."""
    text = (REPO / "infra/Dockerfile").read_text().replace("\\\n", " ")
    stage = re.split(r"^FROM ", text, flags=re.M)[1]
    found = []
    for line in stage.splitlines()[1:]:
        if line.strip() and not line.startswith("#"):
            instruction, _, rest = line.partition(" ")
            found.append((instruction, rest.strip()))
    return found


def main() -> None:
    """Run the steps, then import the modules."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory(prefix="blindsr-image-") as root:
        app, venv = Path(root, "app"), Path(root, "venv")
        app.mkdir()
        environment = {**os.environ, "PATH": f"{venv / 'bin'}:{os.environ['PATH']}", "DEVICE": "cpu"}
        for name in ("VIRTUAL_ENV", "PYTHONPATH"):
            environment.pop(name, None)
        for instruction, text in steps():
            if instruction == "COPY":
                *sources, target = text.split()
                for source in sources:
                    copy(REPO / source, app / target)
            elif instruction == "RUN":
                command = text.replace("/opt/venv", str(venv))
                print("RUN", command, flush=True)
                subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=app, env=environment, check=True)
        python = str(venv / "bin/python")
        for module in MODULES:
            subprocess.run([python, "-c", f"import {module}"], cwd=root, env=environment, check=True)
            print("imports", module, flush=True)
        for job in sorted((app / "jobs").glob("[a-z]*.py")):
            done = subprocess.run(
                [python, str(job), "--help"], cwd=root, env=environment, capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(f"{job.name} --help: {done.stderr}")
            print("answers", job.name, flush=True)
        for program in ("ray", "mlflow"):
            subprocess.run([str(venv / "bin" / program), "--version"], env=environment, check=True)


def copy(source: Path, target: Path) -> None:
    """Copy a file into a folder, or a folder under its name."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


if __name__ == "__main__":
    main()
