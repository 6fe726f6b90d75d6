"""Everything takes its device from its inputs: the whole training step on a pretended accelerator."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import TrainConfig

CONFIGS = [
    {"initial": "spectral", "scales": [2, 3]},
    {"initial": "delta", "schedule": "rounds", "warm_start": True, "detach": False},
    {"initial": "mean", "checkpoint_activations": True, "x0": "nearest", "scales": [1]},
]
BUFFERS = ["mean", "basis", "std", "spectral.window", "spectral.whitening"]


def steps(small, *cases):
    """In a process of its own: the pretended device would stay for all tests after it."""
    settings = json.dumps([[small(**change).model_dump(mode="json"), left] for change, left in cases])
    program = Path(__file__).with_name("fake_step.py")
    done = subprocess.run([sys.executable, str(program), settings], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_training_step_stays_on_its_device_and_a_tensor_left_on_the_cpu_fails(small):
    cases = [(change, None) for change in CONFIGS] + [(CONFIGS[0], name) for name in BUFFERS]
    lines = steps(small, *cases)
    assert lines[: len(CONFIGS)] == ["ended on card"] * len(CONFIGS)
    for name, line in zip(BUFFERS, lines[len(CONFIGS) :], strict=True):
        assert line.startswith("failed: Expected all tensors to be on the same device"), name


@pytest.mark.parametrize("train", [{}, {"deterministic": True, "micro_batch": 1}])
@pytest.mark.parametrize("change", [CONFIGS[0], CONFIGS[1] | {"checkpoint_activations": True}])
def test_a_step_waits_for_nothing_and_does_not_leave_float32(small, change, train):
    """No number asked for, no copy to or from the CPU, no float64, no FFT that copies its input first."""
    program, settings = Path(__file__).with_name("counting_step.py"), TrainConfig(steps=1, **train)
    command = [sys.executable, str(program), small(**change).model_dump_json(), settings.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts.pop("FFTs") > 0
    if not settings.deterministic:
        assert counts.pop("refused: cumsum") > 0  # what CUDA refuses is noticed where it is there
    assert counts == {}


def test_the_package_names_no_device():
    """No `.cuda()`, and "cuda" only where a default device is chosen or a card is asked for its memory."""
    root = Path(__file__).parents[3] / "pipeline"
    allowed = {root / "inference" / name for name in ("network.py", "memory.py")}
    for path in sorted((root / "model").glob("*.py")) + sorted((root / "inference").glob("*.py")):
        if path not in allowed:
            text = path.read_text(encoding="utf-8")
            assert ".cuda(" not in text, path
            assert '"cuda"' not in text, path
