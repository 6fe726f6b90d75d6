"""Checks of tests/cuda on the CPU: those that are cheap and that a CPU can break. infra/gpu_acceptance.sh runs all."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.model_config import ModelConfig
from tests.cuda import machine
from tests.cuda.__main__ import STAGES, _chosen, _device
from tests.cuda.place import FULL, Place
from tests.cuda.report import REHEARSAL, WAITING, Entry, Report, Stage, read_stage
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


def test_a_report_goes_on_without_the_shell_that_began_it(tmp_path: Path):
    command = '"$0" -m tests.cuda "$1" --only training/seeds --only network/restorer_tf32 --device cpu &'
    arguments = ["bash", "-c", command, sys.executable, str(tmp_path)]
    subprocess.run(
        arguments, cwd=REPO, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60
    )
    report = tmp_path / "report.json"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (report.exists() and "complete" in report.read_text()):
        time.sleep(0.1)
    assert json.loads(report.read_text())["counts"] == {"passed": 1, "failed": 0, "skipped": 1, WAITING: 0}


def test_checks_are_chosen_in_their_order():
    chosen = _chosen(["training/seeds", "ranks", "training/step"])
    assert [(stage.name, list(stage.checks)) for stage in chosen] == [
        ("training", ["step", "seeds"]),
        ("ranks", ["data_parallel"]),
    ]
    assert [stage.name for stage in _chosen(None)] == [name for name, _, _ in STAGES]


@pytest.mark.parametrize(
    ("wish", "said"), [("fast", "no stage 'fast'"), ("speed/x", "speed has no check 'x'"), ("speed/", "no check ''")]
)
def test_a_check_that_does_not_exist_is_one_line(tmp_path: Path, wish: str, said: str):
    command = [sys.executable, "-m", "tests.cuda", str(tmp_path), "--only", wish]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr


def test_a_card_that_only_the_driver_knows_is_not_passed_on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA H100, 570.1, 81559 MiB, 5'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    described = machine.describe()
    assert described["nvidia-smi"] == "NVIDIA H100, 570.1, 81559 MiB, 5"
    assert _device(described) == "cuda"
    smi.write_text("#!/bin/sh\necho 'no devices were found' >&2; exit 6\n")
    described = machine.describe()
    assert described["nvidia-smi failed"] == "no devices were found"
    assert _device(described) == "cpu"


def _wheel(folder: Path, package: str) -> None:
    name = package.replace("-", "_")
    with zipfile.ZipFile(folder / f"{name}-9.9-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}-9.9.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 9.9\n")
        wheel.writestr(f"{name}-9.9.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}-9.9.dist-info/RECORD", "")


def test_wheels_are_installed_beside_the_report_also_where_one_is_absent(tmp_path: Path):
    venv.create(tmp_path / "bare", with_pip=True)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for package in machine.TIERS[1]:
        if package not in {"torch", "scipy"}:
            _wheel(wheels, package)
    out = tmp_path / "out"
    environment = ENVIRONMENT | {"PYTHON": str(tmp_path / "bare/bin/python")}
    environment.pop("PYTHONPATH", None)
    command = ["bash", str(SCRIPT), str(out), str(wheels)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, "nothing passed"
    assert done.stderr == f"not installed: scipy; {out}/install.log says why\n"
    report = json.loads((out / "report.json").read_text())
    assert "numpy 9.9" in report["machine"]["packages"]
    assert {check["reason"] for stage in report["stages"][:1] for check in stage["checks"]} == {"needs torch, scipy"}
    assert report["counts"]["skipped"] == sum(report["counts"].values())


def test_a_wrong_request_is_one_line():
    for words in ([], ["a", "b", "c"], ["a", "/no/such/wheels"]):
        done = subprocess.run(["bash", str(SCRIPT), *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"card": "1 x H100", "checked": "the card"}, "(1 x H100;"),
        ({"card": "1 x H100", "checked": REHEARSAL}, "(a rehearsal on the CPU"),
        ({"checked": REHEARSAL}, "(no CUDA card: a rehearsal on the CPU"),
        ({"nvidia-smi": "H100", "checked": "the card"}, "(no CUDA card that PyTorch can use;"),
    ],
)
def test_a_verdict_says_what_was_checked(tmp_path: Path, described: dict, said: str):
    report = Report(tmp_path, [])
    report.machine = described
    assert said in report.verdict()


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
