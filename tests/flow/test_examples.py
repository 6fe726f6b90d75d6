"""The files in examples/ run as a reader would run them, one after the other in one empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
EXPECTED = {
    "restore_a_photograph": r"\(96, 120, 3\) -> \(192, 240, 3\)",
    "custom_degradation": r"bicubic +25\.\d\d dB\nrestored +31\.\d\d dB",
    "train_on_your_folder": r"version 1 of example-x2: ",
    "tars_to_a_judged_model": r"version 1 of mixed: (.|\n)*'psnr\.quick\.held-out-\w+\.x2\.blind': 2\d\.",
    "read_shards_and_bank": r"gaussian +400\nmotion +400\nkernels \(800, 25, 25\), sums (1\.0000|0\.9999)",
}


@pytest.mark.flow
def test_every_example_runs_and_says_what_it_should(tmp_path: Path):
    assert {path.stem for path in (REPO / "examples").glob("*.py")} == EXPECTED.keys()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    # Beside other tests, as tests/conftest.py says.
    environment["RAY_worker_niceness"] = "0"
    environment["PYTHONPATH"] = os.pathsep.join((str(REPO), os.environ["PYTHONPATH"]))
    for name, expected in EXPECTED.items():
        command = [sys.executable, str(REPO / "examples" / f"{name}.py")]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
        assert re.search(expected, done.stdout), f"{name}: {done.stdout}"
