"""The evaluation on real Ray workers: the numbers are the same on any worker and after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from pyarrow import parquet

from jobs.evaluate import Evaluate, main
from kernels_bank import KernelCodec, sample_gaussian
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from kernels_bank.runtime.lease import ENTRY
from pipeline.evaluation.compute import compute_case, prepare
from pipeline.evaluation.evaluate import planned, run_evaluation
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.images.decode import decode_image
from pipeline.images.encode import encode_png
from pipeline.model import BlindUSRNet
from pipeline.model.weights import save_model
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig

pytestmark = pytest.mark.flow
REPO = Path(__file__).parents[2]
MEASURED = ("seconds", "memory_mib")


@pytest.fixture(scope="module")
def settings(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluationSettings:
    """An untrained x2 model, three small photographs, four kernels, no noise."""
    folder = tmp_path_factory.mktemp("evaluation")
    torch.manual_seed(0)
    kernels = sample_gaussian(200, 13, rng=np.random.default_rng(0))
    config = ModelConfig(
        restorer=RestorerConfig(unfoldings=3, widths=(4, 4, 8, 8), residual_blocks=1, global_skip=True),
        kernel=KernelConfig(rounds=1),
    )
    save_model(BlindUSRNet(config, KernelCodec.fit(kernels, components=8)), folder / "model", {})
    (folder / "images").mkdir()
    for name in ("coffee.png", "china.jpg", "flower.jpg"):
        image = decode_image((photographs / name).read_bytes())
        (folder / "images" / name).with_suffix(".png").write_bytes(encode_png(image[100:196, 100:204]))
    np.save(folder / "kernels.npy", kernels[:4])
    return EvaluationSettings(
        model=str(folder / "model"), images=str(folder / "images"), kernels=str(folder / "kernels.npy")
    )


def rows(output: Path) -> list[dict]:
    """The results without what a clock and the memory said."""
    found = parquet.read_table(output / "results.parquet").to_pylist()
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in found]


@pytest.mark.usefixtures("cluster")
def test_any_worker_gives_the_same_numbers_and_a_kill_loses_none(settings: EvaluationSettings, tmp_path: Path):
    headline = run_evaluation(settings, tmp_path / "a")
    assert [name.rpartition(".")[2] for name in headline] == ["bicubic", "blind", "nonblind"]
    assert all(re.fullmatch(r"psnr\.usrnet-table1\.images-[0-9a-f]{8}\.x2\.[a-z]+", name) for name in headline)
    found = rows(tmp_path / "a")
    assert len(found) == 3 * 4 * 4
    assert {row["method"] for row in found} == {"bicubic", "bicubic-unaligned", "blind", "nonblind"}

    # One process, no Ray Data: the oracle.
    plan = prepare(settings)
    expected = {}
    for case in plan.cases[:3]:
        for row in compute_case(case, plan.models, plan.kernels, plan.protocol):
            expected[row.case.name, row.case.kernel, row.method] = row.as_dict()
    for row in found:
        if (oracle := expected.get((row["image"], row["kernel"], row["method"]))) is not None:
            assert {k: v for k, v in oracle.items() if k not in MEASURED} == row

    # As a job that is killed once it has begun; then by the same command again.
    killed = tmp_path / "killed"
    journal, text = _start_and_kill(settings, killed)
    assert not (killed / "summary.json").exists()
    run_evaluation(settings, killed)
    assert rows(killed) == found
    kept = [json.loads(line)[0]["seconds"] for line in text.splitlines()[1:]]
    table = parquet.read_table(killed / "results.parquet").to_pylist()
    assert set(kept) <= {row["seconds"] for row in table}, "finished cases were computed again"
    assert not journal.exists()
    assert run_evaluation(settings, killed) == headline


def _start_and_kill(settings: EvaluationSettings, output: Path) -> tuple[Path, str]:
    """Run the job until its journal has a case, then kill all of its processes; returns the journal."""
    flags = ["--model", settings.model, "--images", settings.images, "--kernels", settings.kernels]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    log = output.with_name(f"{output.name}.log")
    with log.open("w") as said:
        job = subprocess.Popen(
            [sys.executable, "jobs/evaluate.py", *flags, "--output", str(output)],
            cwd=REPO,
            env=environment,
            stdout=said,
            stderr=said,
        )
    journal, deadline = output / "journal.jsonl", time.monotonic() + 180
    while not (journal.exists() and journal.read_text().count("\n") >= 2):
        assert job.poll() is None, f"the job ended before it could be killed:\n{log.read_text()}"
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    tree = [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):  # ended with those that were killed before it
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(tree, timeout=20)
    job.wait()
    text = journal.read_text()
    journal.write_text(text + '[{"image": "cut sho')  # a kill in the middle of a line
    return journal, text[: text.rfind("\n") + 1]


def test_what_does_not_fit_is_said_before_anything_starts(
    settings: EvaluationSettings, tmp_path: Path, sqlite_store: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_store)
    np.save(tmp_path / "wide.npy", sample_gaussian(1, 97, rng=np.random.default_rng(0)))
    assert "3 images x 4 kernels at scales 2" in planned(settings, tmp_path / "out")
    for change, message in (
        ({"scales": (3,)}, "was not made for scale 3"),
        ({"images": str(tmp_path)}, "no images in it"),
        ({"model": str(tmp_path)}, r"holds no model\.json"),
        ({"protocol": "mine"}, "neither a known name"),
        ({"kernels": str(tmp_path / "k.txt")}, "unknown kind of kernel file"),
        (
            {"kernels": str(tmp_path / "wide.npy")},
            r"png: 104 x 96 is too small .* a kernel of 97 pixels .* smaller kernels",
        ),
        ({"model": "models:/nobody@champion"}, "model 'nobody'"),
        ({"model": "models:/nobody/3"}, "nobody"),
        ({"protocol": "dan-gaussian8", "scales": (1,)}, "was not made for scale 1"),
    ):
        with pytest.raises(BadRequestError, match=message) as said:
            planned(settings.model_copy(update=change), tmp_path / "out")
        assert "\n" not in str(said.value)
    only_x4 = tmp_path / "x4.yaml"
    only_x4.write_text("name: x4\nsigmas: {4: [0.0]}\n")
    with pytest.raises(BadRequestError, match=r"protocol 'x4' has none of the model's scales \(2\)"):
        planned(settings.model_copy(update={"protocol": str(only_x4)}), tmp_path / "out")
    (tmp_path / "tiny.png").write_bytes(encode_png(np.zeros((20, 90, 3), np.uint8)))
    with pytest.raises(BadRequestError, match=r"tiny\.png: 90 x 20 is too small for scale 2"):
        planned(settings.model_copy(update={"images": str(tmp_path)}), tmp_path / "out")


def test_a_second_command_on_one_output_is_refused(settings: EvaluationSettings, tmp_path: Path):
    hold = "import sys, time; from kernels_bank.runtime.lease import only_writer\n"
    hold += "with only_writer(sys.argv[1], renew_s=0.1): print(flush=True); time.sleep(60)"
    first = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], cwd=REPO, stdout=subprocess.PIPE)
    try:
        assert first.stdout
        assert first.stdout.readline()
        with pytest.raises(BadRequestError, match=f"process {first.pid} on .* is at work on it"):
            main(Evaluate(**settings.model_dump(), output=str(tmp_path)))
    finally:
        first.kill()
        first.communicate()
    assert {file.name for file in tmp_path.iterdir()} == {ENTRY}


@pytest.mark.usefixtures("cluster")
def test_another_evaluation_is_not_mixed_in(settings: EvaluationSettings, tmp_path: Path):
    one = settings.model_copy(update={"protocol": "float"})
    run_evaluation(one, tmp_path)
    with pytest.raises(ArtefactError, match="holds another evaluation"):
        run_evaluation(settings, tmp_path)
