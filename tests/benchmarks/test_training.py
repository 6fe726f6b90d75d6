"""What Ray costs a training, what a second worker brings, and how long the first step takes: `make bench`.

The config is `tiny-x2-cpu` on bundled photographs; every worker computes with one thread. Wall-clock figures need an
idle machine of two cores. CPU seconds of the training process hardly depend on what else runs: they tell the same for a
worker that has a core for itself, data tasks running beside it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil
import pytest
import ray
import torch
import yaml
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jobs.train import Train
from kernels_bank import KernelBank
from kernels_bank.runtime.cluster import connect
from pipeline.cli import parse
from pipeline.config import RunConfig
from pipeline.data.batch import Batch
from pipeline.data.feed import Feed
from pipeline.data.photographs import copy_photographs
from pipeline.tracking.runs import RunRef, tracking_uri
from pipeline.tracking.store import client
from pipeline.training.learner import build_network
from pipeline.training.objective import TrainingObjective

REPO = Path(__file__).parents[2]
STEPS, WARM = 60, 20  # the first ones wait for data and fill caches; they are not measured


@pytest.fixture
def cluster() -> Iterator[None]:
    """A local Ray with room for two workers; none runs beside the other tests, which would slow them."""
    connect(min_cpus=3)
    yield
    ray.shutdown()


@pytest.fixture
def config(cluster: None, tmp_path: Path) -> RunConfig:
    from kernels_bank.generate import build_bank
    from kernels_bank.spec import KernelBankSpec
    from pipeline.data.manifest import ShardSettings
    from pipeline.data.shards import make_shards

    folder = tmp_path / "training"
    photographs, _ = copy_photographs(folder / "photographs")
    make_shards(str(photographs), str(folder / "shards"), ShardSettings(tile=240, shard_mib=1))
    build_bank(KernelBankSpec(gaussian=500, motion=500, size=25), str(folder / "bank"))
    given = parse(Train, ["--config", str(REPO / "jobs" / "configs" / "tiny-x2-cpu.yaml")])
    base = RunConfig.model_validate(given.model_dump(include=set(RunConfig.model_fields)))
    data = base.data.model_copy(update={"shards": str(folder / "shards"), "bank": str(folder / "bank")})
    never = {"checkpoint_every": STEPS, "validate_every": STEPS, "image_every": STEPS, "log_every": 10}
    return base.model_copy(
        update={
            "output": str(folder / "runs"),
            "data": data,
            "train": base.train.model_copy(update={"steps": STEPS, **never}),
            "tracking": base.tracking.model_copy(update={"model_name": None}),
        }
    )


@dataclass
class Watched:
    """Stands in for the progress bar: when which step was shown, and the CPU seconds of each worker until then."""

    seen: list[tuple[int, float, list[float]]] = field(default_factory=list)

    def __call__(self, label: str, total: int, unit: str) -> Watched:
        self.step = 0
        return self

    def __enter__(self) -> Watched:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def start_at(self, done: int) -> None:
        self.step = done

    def advance(self, count: int = 1, note: str = "") -> None:
        self.step += count
        self.seen.append((self.step, time.perf_counter(), worker_cpu()))

    def per_step(self) -> tuple[float, float]:
        """Wall seconds a step, and CPU seconds a step of the busiest worker, without the first steps."""
        (first, start, before), (last, end, after) = next(s for s in self.seen if s[0] >= WARM), self.seen[-1]
        return (end - start) / (last - first), max(b - a for a, b in zip(before, after, strict=True)) / (last - first)


def worker_cpu() -> list[float]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                times = process.cpu_times()
                found.append(times.user + times.system)
    return found


@dataclass(frozen=True)
class Trained:
    """A run of one or two workers."""

    wall: float  # seconds a step
    cpu: float  # of the busiest worker
    data_wait: float  # mean share


def trained(config: RunConfig, workers: int) -> Trained:
    from pipeline.training import channel
    from pipeline.training.fit import fit

    watched, shown = Watched(), channel.Progress
    channel.Progress = watched  # type: ignore[misc, assignment]
    try:
        train = config.train.model_copy(update={"workers": workers})
        fitted = fit(config.model_copy(update={"name": f"workers-{workers}-{time.time_ns()}", "train": train}))
    finally:
        channel.Progress = shown  # type: ignore[misc]
    history = client(fitted.run.tracking_uri).get_metric_history(fitted.run.run_id, "data_wait")
    waits = [m.value for m in history if m.step > WARM]
    return Trained(*watched.per_step(), sum(waits) / len(waits))


def by_hand(config: RunConfig, batches: list[Batch]) -> tuple[float, float]:
    """The plain loop: wall and CPU seconds a step."""
    network = build_network(config, KernelBank.open(config.data.bank).codec)
    task = TrainingObjective(network, config.train)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.train.ema_decay))
    for step, batch in enumerate(batches):
        if step == WARM:
            wall, cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad(set_to_none=True)
        loss = task(batch.lr, batch.hr, batch.kernel, batch.sigma, batch.scale)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        ema.update_parameters(network)
    count = len(batches) - WARM
    return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count


@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.benchmark(group="a training step: by hand, one worker, two workers")
def test_ray_against_a_plain_loop_and_two_workers_against_one(benchmark, config: RunConfig) -> None:
    batches = list(Feed(config, stages=(), workers=1, rank=0).batches(STEPS, cpus=1))
    hand, ray_one, ray_two = [by_hand(config, batches)], [], []

    def round_() -> None:
        ray_one.append(trained(config, 1))
        hand.append(by_hand(config, batches))
        ray_two.append(trained(config, 2))
        hand.append(by_hand(config, batches))

    benchmark.pedantic(round_, rounds=int(os.environ.get("BLINDSR_BENCH_ROUNDS", "2")))
    size = config.train.batch_size
    wall, cpu = (sorted(values)[len(hand) // 2] for values in zip(*hand, strict=True))
    one, two = (sorted(runs, key=lambda r: r.cpu)[len(runs) // 2] for runs in (ray_one, ray_two))
    print(f"\nby hand      {size / wall:.2f} samples/s, {cpu:.3f} s CPU a step")
    for name, run in (("one worker ", one), ("two workers", two)):
        print(f"{name}  {size / run.wall:.2f} samples/s, {run.cpu:.3f} s CPU a step, data wait {run.data_wait:.1%}")
    benchmark.extra_info["ratios"] = {
        "a training step's CPU, one worker against a plain loop": cpu / one.cpu,
        "a training step's CPU a worker, two against one": one.cpu / two.cpu,
    }
    print(f"Ray against the plain loop: {one.wall / wall - 1:+.1%} time, {one.cpu / cpu - 1:+.1%} CPU a step")
    print(f"two workers against one: {one.wall / two.wall:.2f}x samples/s, {one.cpu / two.cpu:.2f}x less CPU each")


@pytest.mark.benchmark(group="from the command line to the first step")
def test_time_to_the_first_step(benchmark, config: RunConfig, tree_use: type, tmp_path: Path) -> None:
    """With a store and a Ray that have to be made; each part by what it leaves behind."""
    ray.shutdown()

    def once() -> None:
        output, file = tmp_path / f"runs-{time.time_ns()}", tmp_path / "run.yaml"
        train = config.train.model_copy(update={"steps": 2, "log_every": 1})
        run_config = config.model_copy(update={"output": str(output), "train": train, "name": "start"})
        file.write_text(yaml.safe_dump(run_config.model_dump(mode="json")))
        command = [sys.executable, "jobs/train.py", "--config", str(file)]
        started, home = time.time(), output / "start"
        with tree_use() as used:
            subprocess.run(command, cwd=REPO, check=True, capture_output=True)
        uri = tracking_uri(output)
        run = client(uri).search_runs([e.experiment_id for e in client(uri).search_experiments()])[0]
        ref = RunRef(run.info.run_id, uri)
        first = client(uri).get_metric_history(ref.run_id, "loss")[0].timestamp / 1000
        opened = run.info.start_time / 1000
        launched = (home / "checkpoints" / ".validate_storage_marker").stat().st_mtime
        print(f"\nfirst step after {first - started:.1f} s; {used.cpu:.0f} s CPU until the end of its two steps")
        for part, seconds in {
            "imports, config, digests, Ray": opened - started,
            "the run's record": launched - opened,
            "workers, first batch, first step": first - launched,
            "from there to the end of the job": started + used.wall - first,
        }.items():
            print(f"  {part:34} {seconds:5.1f} s")

    benchmark.pedantic(once, rounds=1)
