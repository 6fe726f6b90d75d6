"""Checks of tests/cuda on the CPU: those that are cheap and that a CPU can break. infra/gpu_acceptance.sh runs all."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.model_config import ModelConfig
from tests.cuda.__main__ import STAGES
from tests.cuda.place import FULL, Place
from tests.cuda.report import WAITING, Entry, Report, Stage, read_stage
from tests.cuda.stage import checks_of

REPO = Path(__file__).parents[2]
SCRIPT = REPO / "infra/gpu_acceptance.sh"
CHEAP = {
    "network": ["data_step", "fft_layouts", "degradation"],
    "restoring": ["out_of_memory", "no_memory_at_all"],
    "training": ["non_finite", "accumulation", "deterministic", "seeds"],
}
# As on a cluster node whose job is rehearsed: no Ray of somebody else, one thread.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable}


@pytest.mark.parametrize(("stage", "check"), [(stage, check) for stage, names in CHEAP.items() for check in names])
def test_on_the_cpu(stage: str, check: str):
    getattr(importlib.import_module(f"tests.cuda.{stage}"), f"check_{check}")(Place(torch.device("cpu")))


def test_the_full_network_is_the_configs():
    model = ModelConfig.model_validate(yaml.safe_load((REPO / "jobs/configs/mixed-x2.yaml").read_text())["model"])
    assert model.with_restorer(compile_prior=False) == FULL


def test_a_stage_is_read_without_importing_it():
    for name, tier, _ in STAGES:
        stage = read_stage(name, tier)
        assert list(stage.checks) == list(checks_of(importlib.import_module(f"tests.cuda.{name}")))
        assert all(entry.law for entry in stage.checks.values())


def test_the_first_tier_imports_no_other_packages():
    modules = ", ".join(f"tests.cuda.{name}" for name, tier, _ in STAGES if tier == 1)
    absent = ["ray", "mlflow", "pyarrow", "rich", "boto3", "yaml", "pydantic_settings", "webdataset", "psutil", "PIL"]
    absent += ["pytest", "simplejpeg"]
    program = f"import sys\nsys.modules.update(dict.fromkeys({absent}))\nimport {modules}\n"
    program += "from pipeline.inference import Restorer\nprint(Restorer.load('shipped:blind-sr-x2').scales)"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, timeout=300)
    assert done.stdout == "(2,)\n", done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_acceptance_that_is_killed_leaves_what_it_told(tmp_path: Path, number: signal.Signals):
    arguments = {"ACCEPTANCE_ARGUMENTS": "--only network --only speed --device cpu"}
    process = subprocess.Popen(
        ["bash", str(SCRIPT), str(tmp_path)],
        env=ENVIRONMENT | arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    report = tmp_path / "report.json"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if report.exists() and json.loads(report.read_text())["counts"]["passed"]:
            break
        time.sleep(0.05)
    if number == signal.SIGKILL:  # the program itself, which then cannot say a word
        os.kill(json.loads(report.read_text())["machine"]["process"], number)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode != 0, said
    text = (tmp_path / "report.md").read_text()
    counts = json.loads(report.read_text())["counts"]
    assert counts["passed"] >= 1, said
    assert counts[WAITING] >= 1
    assert ("stopped by SIGTERM" if number == signal.SIGTERM else "still running, or killed") in text
    assert "- speed: restorations: did not run" in text


def test_a_wrong_request_is_one_line():
    for words in ([], ["a", "b", "c"], ["a", "/no/such/wheels"]):
        done = subprocess.run(["bash", str(SCRIPT), *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: ")


def test_a_report_names_what_failed_and_what_was_not_tried(tmp_path: Path):
    checks = {
        "a": Entry(
            "a", "A law.", "passed", seconds=1.2, facts={"difference": 1.5e-7, "rows": [{"way": "x", "s": 1.0}]}
        ),
        "b": Entry("b", "Another law.", "failed", "value: 3, the tolerance is 1"),
        "c": Entry("c", "A third.", "skipped", "needs a card"),
        "d": Entry("d", "A fourth."),
    }
    report = Report(tmp_path, [Stage("network", "The network.", 1, checks)])
    text = (tmp_path / "report.md").read_text()
    assert "1 passed, 1 failed, 1 skipped, 1 did not run" in report.verdict()
    assert "- **network: b** (Another law.) value: 3, the tolerance is 1" in text
    assert "- network: c: needs a card\n- network: d: did not run" in text
    assert "| a | passed | 1.2 | difference 1.5e-07. A law. |" in text
    assert "| x | 1 |" in text
