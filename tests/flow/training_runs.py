"""Small training runs for flow tests: their config, as jobs of their own, and what they leave."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import yaml
from safetensors.torch import load_file

from kernels_bank.runtime import storage, uris
from pipeline.config import DataConfig, RunConfig, TrackingConfig, TrainConfig
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig
from pipeline.training.commit import SNAPSHOT
from tests.helpers.processes import titled

REPO = Path(__file__).parents[2]


def small_run(shards: str, bank: str, output: str, **train: object) -> RunConfig:
    """A run of seconds, `small` under `output`, that ends in the same bits whatever happens on its way."""
    settings = {"steps": 24, "batch_size": 4, "workers": 2, "cpus_per_worker": 0.5, "deterministic": True}
    settings |= {"checkpoint_every": 4, "log_every": 2, "image_every": 6}
    return RunConfig(
        name="small",
        output=output,
        model=ModelConfig(
            restorer=RestorerConfig(unfoldings=3, widths=(8, 8, 16, 16), residual_blocks=1, global_skip=True),
            kernel=KernelConfig(rounds=1),
        ),
        data=DataConfig(shards=shards, bank=bank, patch=48, patches_per_tile=3, sigma=(0.0, 0.02), task_cpus=0.5),
        train=TrainConfig.model_validate(settings | train),
        tracking=TrackingConfig(model_name="small-x2"),
    )


def final_weights(output: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(output) / "small" / "model" / "weights.safetensors")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def command_of(config: RunConfig, folder: Path) -> list[str]:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return [sys.executable, "jobs/train.py", "--config", str(file)]


def environment(**variables: str) -> dict[str, str]:
    """Of a job that starts a Ray of its own."""
    return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | variables


def run_job(config: RunConfig, folder: Path, **variables: str) -> subprocess.Popen:
    """The job in its own session; what it says goes to `job.log` in the folder."""
    with (folder / "job.log").open("a") as log:
        return subprocess.Popen(
            command_of(config, folder),
            cwd=REPO,
            env=environment(**variables),
            start_new_session=True,
            stdout=log,
            stderr=log,
        )


def wait_until(condition: Callable[[], bool], job: subprocess.Popen, limit_s: float = 300) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert job.poll() is None, f"the job ended by itself:\n{end_of_log(job)}"
        assert time.monotonic() < deadline, f"after {limit_s:g} s:\n{end_of_log(job)}"
        time.sleep(0.1)


def end_of_log(job: subprocess.Popen) -> str:
    """The last of what a job of `run_job` said."""
    return Path(job.args[-1]).with_name("job.log").read_text()[-2000:]  # type: ignore[index,arg-type]


def newest_step(config: RunConfig) -> int:
    """Of the committed checkpoints."""
    snapshot = uris.join(config.output, "small", "checkpoints", SNAPSHOT)
    if not storage.exists(snapshot):
        return 0
    return max(map(int, re.findall(rb"step-(\d+)", storage.read_bytes(snapshot))), default=0)


def wait_for_step(config: RunConfig, job: subprocess.Popen, step: int) -> None:
    wait_until(lambda: newest_step(config) >= step, job)


def processes(job: subprocess.Popen, title: str) -> list[psutil.Process]:
    """Those below the job whose title or command line has this in it."""
    return titled(psutil.Process(job.pid).children(recursive=True), title)


def kill_all(job: subprocess.Popen) -> None:
    """The job and all that it started, at once: as if the machine had lost its power."""
    tree = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
    os.kill(job.pid, signal.SIGKILL)
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(tree, timeout=20)
    job.wait()
