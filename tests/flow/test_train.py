"""Training on real Ray Train workers: a whole run, a killed worker, a killed driver; the result does not change."""

from __future__ import annotations

import json
import os
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
    assert fit(config).reused


def test_killed_workers_and_a_killed_driver_do_not_change_the_result(config: RunConfig, tmp_path: Path):
    import mlflow

    undisturbed = config.model_copy(update={"output": str(tmp_path / "undisturbed")})
    assert run_job(undisturbed, tmp_path).wait(timeout=300) == 0

    # A worker is killed in the middle of the run; Ray Train starts the group again from the last checkpoint.
    slow = config.model_copy(update={"train": config.train.model_copy(update={"steps": 12})})
    job = run_job(slow, tmp_path)
    wait_for_checkpoint(config, job)
    workers = [p for p in psutil.Process(job.pid).children(recursive=True) if is_train_worker(p)]
    workers[0].kill()
    # Then the driver and all of its Ray.
    time.sleep(3)
    kill_all(job)
    again = run_job(slow, tmp_path)
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0, out
    assert same(final_weights(config.output), final_weights(undisturbed.output))

    record = json.loads((Path(config.output) / "small" / "run.json").read_text())
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{config.output}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [r.info.run_id for r in runs] == [record["run_id"]]
    assert runs[0].info.status == "FINISHED"
    steps = [m.step for m in client.get_metric_history(record["run_id"], "loss")]
    assert steps == [2, 4, 6, 8, 10, 12]


def wait_for_checkpoint(config: RunConfig, job: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    checkpoints = Path(config.output) / "small" / "checkpoints"
    while not (checkpoints / "checkpoint_manager_snapshot.json").exists():
        assert job.poll() is None
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
