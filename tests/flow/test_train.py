"""Training on real Ray Train workers: a whole run, a killed worker, a killed driver; the result does not change."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.config import DataConfig, ModelConfig, RunConfig, TrackingConfig, TrainConfig

pytestmark = pytest.mark.flow
REPO = Path(__file__).parents[2]


@pytest.fixture
def config(shards: str, bank: str, tmp_path: Path) -> RunConfig:
    return RunConfig(
        name="small",
        output=str(tmp_path / "runs"),
        model=ModelConfig(unfoldings=3, rounds=1, widths=(8, 8, 16, 16), residual_blocks=1, global_skip=True),
        data=DataConfig(shards=shards, bank=bank, patch=48, patches_per_tile=3, sigma=(0.0, 0.02)),
        train=TrainConfig(
            steps=12,
            batch_size=4,
            workers=2,
            cpus_per_worker=0.5,
            checkpoint_every=4,
            log_every=2,
            image_every=6,
            deterministic=True,
        ),
        tracking=TrackingConfig(model_name="small-x2"),
    )


def final_weights(output: str) -> dict[str, torch.Tensor]:
    return load_file(Path(output) / "small" / "model" / "weights.safetensors")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def run_job(config: RunConfig, folder: Path) -> subprocess.Popen:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "jobs/train.py", "--config", str(file)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        command, cwd=REPO, env=environment, start_new_session=True, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.usefixtures("cluster")
def test_a_run_ends_with_a_registered_model_that_holds_the_trained_weights(config: RunConfig):
    import mlflow

    from pipeline.tracking import registry
    from pipeline.training.fit import fit

    fitted = fit(config)
    assert not fitted.reused
    folder = registry.download("models:/small-x2@candidate", tracking_uri=fitted.run.tracking_uri)
    assert same(load_file(folder / "weights.safetensors"), final_weights(config.output))
    client = mlflow.MlflowClient(tracking_uri=fitted.run.tracking_uri)
    run = client.get_run(fitted.run.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.steps"] == "12"
    assert [m.step for m in client.get_metric_history(fitted.run.run_id, "loss")] == [2, 4, 6, 8, 10, 12]
    assert "kernels/preview.png" in {file.path for file in client.list_artifacts(fitted.run.run_id, "kernels")}
    assert fit(config).reused


def test_kills_and_a_stop_do_not_change_the_result(config: RunConfig, tmp_path: Path):
    """SIGKILL of a worker, SIGTERM of the driver, SIGKILL of the driver and its Ray: one run, the same bits."""
    import mlflow

    config = config.model_copy(update={"train": config.train.model_copy(update={"steps": 24})})
    undisturbed = config.model_copy(update={"output": str(tmp_path / "undisturbed")})
    assert run_job(undisturbed, tmp_path).wait(timeout=300) == 0

    job = run_job(config, tmp_path)
    wait_for_step(config, job, 4)
    workers = [p for p in psutil.Process(job.pid).children(recursive=True) if is_train_worker(p)]
    workers[0].kill()
    wait_for_step(config, job, 8)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=120) == 130
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{config.output}/mlflow.db")
    record = json.loads((Path(config.output) / "small" / "run.json").read_text())
    assert client.get_run(record["run_id"]).info.status == "KILLED"
    stopped_at = newest_step(config)

    job = run_job(config, tmp_path)
    wait_for_step(config, job, min(stopped_at + 1, 24))
    kill_all(job)
    again = run_job(config, tmp_path)
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0, out
    assert same(final_weights(config.output), final_weights(undisturbed.output))

    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [r.info.run_id for r in runs] == [record["run_id"]]
    assert runs[0].info.status == "FINISHED"
    steps = [m.step for m in client.get_metric_history(record["run_id"], "loss")]
    assert steps == list(range(2, 25, 2))


def newest_step(config: RunConfig) -> int:
    """Of the committed checkpoints."""
    snapshot = Path(config.output) / "small" / "checkpoints" / "checkpoint_manager_snapshot.json"
    try:
        names = re.findall(r"step-(\d+)", snapshot.read_text())
    except FileNotFoundError:
        return 0
    return max(map(int, names), default=0)


def wait_for_step(config: RunConfig, job: subprocess.Popen, step: int) -> None:
    deadline = time.monotonic() + 240
    while newest_step(config) < step:
        assert job.poll() is None, "the job ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_train_worker(process: psutil.Process) -> bool:
    try:
        return any("RayTrainWorker" in part for part in process.cmdline())
    except psutil.Error:
        return False


def kill_all(job: subprocess.Popen) -> None:
    tree = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
    os.kill(job.pid, signal.SIGKILL)
    for process in tree:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(tree, timeout=20)
    job.wait()
