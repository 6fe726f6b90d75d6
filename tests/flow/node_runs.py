"""Small runs on nodes that come and go: their config, where they stand, and what they leave."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import yaml
from safetensors.torch import load_file

from pipeline.config import RunConfig, TrackingConfig
from tests.flow.launcher import Local
from tests.flow.training_runs import REPO, small_run


def run_on_nodes(shards: str, bank: str, output: str) -> RunConfig:
    """Two workers of 1.5 CPUs: on nodes of two CPUs one a node, with room for its data tasks."""
    run = small_run(shards, bank, output, cpus_per_worker=1.5)
    return run.model_copy(update={"tracking": TrackingConfig(model_name=None)})


def weights(config: RunConfig) -> dict[str, torch.Tensor]:
    """What the run ended with."""
    return load_file(Path(config.output, config.name, "model", "weights.safetensors"))


def stages(config: RunConfig) -> list[tuple[int, int]]:
    """(workers, samples that each of them took) of the finished run."""
    folder = Path(config.output, config.name, "checkpoints", f"step-{config.train.steps:08d}")
    state = json.loads((folder / "state.json").read_text())
    return [(stage["workers"], stage["consumed"]) for stage in state["stages"]]


def recorded(config: RunConfig, uri: str) -> list[int]:
    """The steps of the loss in the one tracking run of this name, which ended well."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, filter_string=f"attributes.run_name = '{config.name}'")
    assert [r.info.status for r in runs] == ["FINISHED"]
    return [point.step for point in client.get_metric_history(runs[0].info.run_id, "loss")]


def every_second(config: RunConfig) -> list[int]:
    """The steps that are recorded."""
    return list(range(2, config.train.steps + 1, 2))


def named(config: RunConfig, name: str, **train: int) -> tuple[RunConfig, Path]:
    """The same run under another name, and its config file."""
    changed = config.model_copy(update={"name": name, "train": config.train.model_copy(update=train)})
    file = Path(config.output, f"{name}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(changed.model_dump(mode="json")))
    return changed, file


def wait_for(condition: Callable[[], object], what: str, *, patience_s: float = 600) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def newest(config: RunConfig) -> int:
    """The step of the newest committed checkpoint."""
    snapshot = Path(config.output, config.name, "checkpoints", "checkpoint_manager_snapshot.json")
    try:
        return max(map(int, re.findall(r"step-(\d+)", snapshot.read_text())), default=0)
    except FileNotFoundError:
        return 0


def nodes_with(local: Local, title: str) -> set[int]:
    """The numbers of the cluster's nodes that run a process of this title."""
    found = set()
    for process in psutil.process_iter():
        try:
            mark = process.environ().get("BLINDSR_LOCAL_CLUSTER", "")
            if mark.startswith(f"{local.folder}#node-") and title in " ".join(process.cmdline()):
                found.add(int(mark.rpartition("-")[2]))
        except psutil.Error:
            continue
    return found


def lose_a_node(local: Local, run: RunConfig, file: Path, node: int) -> subprocess.Popen:
    """Start a run and kill a node that holds one of its workers once there is a checkpoint."""
    job = subprocess.Popen([sys.executable, "jobs/train.py", "--config", file], cwd=REPO, env=local.environment)
    wait_for(lambda: newest(run) >= run.train.checkpoint_every or job.poll() is not None, "no checkpoint")
    assert job.poll() is None
    assert node in nodes_with(local, "RayTrainWorker")
    assert nodes_with(local, "ray::DriverChannel") == {0}  # on another node it would be lost, and the run with it
    assert local("kill-node", str(node)).returncode == 0
    return job
