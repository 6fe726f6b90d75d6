"""The launcher deletes the folder of a cluster that it made, and no other."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).parents[3] / "infra" / "local_cluster.py"


@pytest.mark.parametrize("theirs", ["thesis.tex", "settings.json"])
@pytest.mark.parametrize("command", ["down", "up"])
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, command: str, theirs: str):
    (tmp_path / theirs).write_text(json.dumps({"theme": "dark"}))
    done = subprocess.run(
        [sys.executable, str(LAUNCHER), "--folder", str(tmp_path), command], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert f"holds {theirs} and is no cluster's folder; nothing was touched" in done.stderr
    assert json.loads((tmp_path / theirs).read_text()) == {"theme": "dark"}
