"""Second tier: a training by Ray Train, fed by Ray Data, killed and resumed; how long a card waits for its data."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from pipeline.config import DataConfig, RunConfig
from tests.cuda.place import FULL, TINY, Facts, Place, learner, pictures, run_config

REPO = Path(__file__).parents[2]


@functools.cache
def _data() -> Path:
    """A folder with shards and a bank, made once a process."""
    from kernels_bank.generate import build_bank
    from kernels_bank.runtime.cluster import connect
    from kernels_bank.spec import KernelBankSpec
    from pipeline.data.manifest import ShardSettings
    from pipeline.data.shards import make_shards
    from pipeline.images.encode import encode_png

    folder = Path(tempfile.mkdtemp(prefix="acceptance-"))
    (folder / "photographs").mkdir()
    for number, picture in enumerate(pictures(12, 480, 480)):
        pixels = (255 * picture.permute(1, 2, 0)).round().byte().numpy()
        (folder / "photographs" / f"{number}.png").write_bytes(encode_png(pixels))
    connect(min_cpus=3)
    make_shards(str(folder / "photographs"), str(folder / "shards"), ShardSettings(tile=240, shard_mib=1))
    build_bank(KernelBankSpec(gaussian=300, motion=300), str(folder / "bank"))
    return folder


def _describe(place: Place, steps: int) -> Path:
    """The YAML file of a run of so many steps."""
    import yaml

    folder = _data()
    often = {"checkpoint_every": steps // 4, "log_every": max(1, steps // 20)}
    late = {"validate_every": steps, "image_every": steps}
    config = RunConfig(
        name="accepted",
        output=str(folder / "runs"),
        model=TINY,
        data=DataConfig(shards=str(folder / "shards"), bank=str(folder / "bank"), patch=place.pick(96, 48)),
        train=run_config(
            TINY, 96, batch_size=place.pick(16, 4), gpu=place.is_card, precision="bf16", **often, **late
        ).train.model_copy(update={"steps": steps}),
    )
    config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"model_name": None})})
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return file


def _start(file: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(REPO / "jobs/train.py"), "--config", str(file)]
    with log.open("ab") as stream:
        return subprocess.Popen(command, cwd=REPO, env=environment, stdout=stream, stderr=stream)


def check_training_run(place: Place) -> Facts:
    """A run with `gpu: true`, killed after its first checkpoint, resumes by the same command in one MLflow run."""
    import ray

    from pipeline.tracking.store import client

    steps = place.pick(200, 12)
    file, folder = _describe(place, steps), _data()
    ray.shutdown()  # the job starts a Ray of its own, and needs the card
    log, snapshot = folder / "train.log", folder / "runs/accepted/checkpoints/checkpoint_manager_snapshot.json"
    first = _start(file, log)
    deadline = time.monotonic() + place.patience(150)
    while time.monotonic() < deadline and first.poll() is None and not snapshot.exists():
        time.sleep(0.1)
    was_running = first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert snapshot.exists(), _tail(log, "no checkpoint")
    second = _start(file, log)
    try:
        second.wait(timeout=place.patience(150))
    finally:
        second.kill()
    assert second.returncode == 0, _tail(log, f"status {second.returncode}")
    store = client(f"sqlite:///{folder}/runs/mlflow.db")
    runs = store.search_runs([e.experiment_id for e in store.search_experiments()])
    assert len(runs) == 1, f"{len(runs)} MLflow runs"
    points = [point.step for point in store.get_metric_history(runs[0].info.run_id, "loss")]
    assert points[-1] == steps, points
    assert points == sorted(set(points)), f"points lost or doubled: {points}"
    metrics = runs[0].data.metrics
    facts: Facts = {"killed while running": str(was_running), "steps": steps, "images/s": metrics["images_per_s"]}
    facts["data wait"] = metrics["data_wait"]
    if place.is_card:
        facts["peak on the card, GiB"] = metrics["cuda_memory_gib"]
        usage = [name for name in metrics if "gpu_0_utilization" in name]
        facts["metrics of the card"] = usage[0] if usage else "none: pip install nvidia-ml-py"
    return facts


def _tail(log: Path, what: str) -> str:
    return f"{what}, {log}: {' | '.join(log.read_text(errors='replace').strip().splitlines()[-3:])[:600]}"


def check_data_wait(place: Place) -> dict[str, list[Facts]]:
    """Share of the time that a training process waits for data, with so many CPUs for the data tasks."""
    from kernels_bank.runtime.cluster import connect
    from pipeline.data.feed import Feed
    from pipeline.training.ledger import Ledger
    from pipeline.training.loop import Clock
    from pipeline.training.step import take_step

    folder = _data()
    connect(min_cpus=3)
    rows: list[Facts] = []
    for name, model in (("tiny", TINY), ("full", FULL)) if place.is_card else (("tiny", TINY),):
        for cpus in (1, 2, 4, 8) if place.is_card else (1,):
            config = run_config(model, place.pick(96, 48), batch_size=place.pick(16, 4), precision="bf16")
            data = config.data.model_copy(update={"shards": str(folder / "shards"), "bank": str(folder / "bank")})
            config = config.model_copy(update={"data": data})
            trained, clock, ledger = learner(place, config), Clock(), Ledger()
            warm, count = place.pick(10, 1), place.pick(40, 3)
            feed = Feed(config, stages=(), workers=1, rank=0)
            for step, batch in enumerate(feed.batches(count, cpus=cpus, device=str(place.device))):
                if step == warm:
                    clock.rates()
                clock.waited()
                ledger.add(step, take_step(trained, batch, config.train, step), {}, batch.keys)
                place.wait()
                clock.worked(images=config.train.batch_size)
            rates = clock.rates()
            rows.append({"network": name, "data CPUs": cpus, "of": len(os.sched_getaffinity(0))})
            rows[-1] |= {"samples/s": rates["images_per_s"], "data wait": rates["data_wait"]}
    return {"rows": rows}


def check_placement(place: Place) -> Facts:
    """Ray gives a worker that asks for one card exactly one, which CUDA sees as its only one."""
    import ray

    from kernels_bank.runtime.cluster import connect

    connect(min_cpus=3)
    cards = ray.cluster_resources().get("GPU", 0)
    assert cards == (torch.cuda.device_count() if place.is_card else 0), f"Ray counts {cards:g} cards"

    def seen() -> str:
        return json.dumps([os.environ.get("CUDA_VISIBLE_DEVICES", ""), torch.cuda.device_count()])

    task = ray.remote(num_gpus=1 if place.is_card else 0)(seen)
    visible, count = json.loads(ray.get(task.remote(), timeout=place.patience(60)))
    assert count == (1 if place.is_card else 0)
    return {"cards of Ray": cards, "CUDA_VISIBLE_DEVICES": visible or "-"}
