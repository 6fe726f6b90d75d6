"""The small jobs of the drills: their commands, their progress, and their results."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from kernels_bank.runtime import folders, storage, uris
from pipeline.config import DataConfig, RunConfig, TrackingConfig, TrainConfig
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig
from pipeline.training.commit import SNAPSHOT
from tests.drills import records

STEPS, CHECKPOINT_EVERY, LOG_EVERY = 20, 4, 2
SHARDS, BANK_SHARDS, CASES, PHOTOGRAPHS = 4, 3, 24, 8


@dataclass(frozen=True)
class Job:
    """One command, and how to look at what it makes."""

    kind: str  # jobs of one kind end with the same result
    command: list[str]
    output: str  # URI
    progress: Callable[[], float]  # the share of the work whose result is safe, 0 to 1
    writing: Callable[[], bool]  # whether the checkpoint or the manifest is being written, as far as one can see
    result: Callable[[], dict[str, str]]  # name -> SHA-256 of all that must be the same
    variables: dict[str, str] = field(default_factory=dict)
    recorded: Callable[[], list[str]] = list  # what is wrong with its tracking run


@dataclass(frozen=True)
class Inputs:
    """What the jobs read."""

    photographs: Path
    held_out: Path
    small: Path  # crops, to be restored
    shards: str = ""
    bank: str = ""
    model: str = ""


def environment(temporary: Path, cache: Path) -> dict[str, str]:
    """Return the environment of a command: this process's own without what points it at another Ray or MLflow.

    Args:
        temporary: its folder for temporary files.
        cache: the node's cache.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "BLINDSR_"))}
    own = {"TMPDIR": str(temporary), "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    # Ray starts its workers at a low priority: beside other programs they would get nowhere.
    return kept | own | {"RAY_worker_niceness": "0"}


def _job(name: str, *arguments: str) -> list[str]:
    return [sys.executable, f"jobs/{name}.py", *arguments]


def sharding(inputs: Inputs, output: str) -> Job:
    """Return the job that cuts the photographs into shards."""
    command = _job("shard_images", "--source", str(inputs.photographs), "--output", output)
    return Job(
        kind="shards",
        command=[*command, "--tile", "160", "--shard-mib", "0.3"],
        output=output,
        progress=lambda: min(1.0, _count(output, r"train-\d+\.tar") / SHARDS),
        writing=lambda: _count(output, r"train-\d+\.tar") >= SHARDS,
        result=lambda: digests(output, r"(train|validation)-\d+\.tar|manifest\.json"),
    )


def bank(output: str) -> Job:
    """Return the job that builds a bank of three files."""
    counts = ["--gaussian", "9000", "--motion", "3000", "--size", "15", "--components", "8"]
    return Job(
        kind="bank",
        command=_job("build_kernel_bank", "--output", output, *counts),
        output=output,
        progress=lambda: min(1.0, _count(output, r"kernels-\d+\.parquet") / BANK_SHARDS),
        writing=lambda: _count(output, r"kernels-\d+\.parquet") >= BANK_SHARDS,
        result=lambda: digests(output, r"kernels-\d+\.parquet|codec\.safetensors|manifest\.json"),
    )


def training(
    inputs: Inputs,
    folder: Path,
    *,
    name: str = "",
    output: str = "",
    store: str = "",
    backend: str = "",
    **variables: str,
) -> Job:
    """Return a training of seconds that ends in the same bits whatever happens on its way.

    Args:
        inputs: with shards and bank.
        folder: where its config file lies.
        name: of its experiment and its registered model; by default the folder's.
        output: URI; by default a folder in `folder`, with the tracking store in it.
        store: URI of a tracking server.
        backend: URI of that server's database.
        variables: its environment.
    """
    output, name = output or str(folder / "runs"), name or folder.name
    config = RunConfig(
        name="small",
        output=output,
        model=ModelConfig(
            restorer=RestorerConfig(unfoldings=3, widths=(8, 8, 16, 16), residual_blocks=1, global_skip=True),
            kernel=KernelConfig(rounds=1),
        ),
        data=DataConfig(
            shards=inputs.shards, bank=inputs.bank, patch=48, patches_per_tile=3, sigma=(0.0, 0.02), task_cpus=0.5
        ),
        train=TrainConfig(
            steps=STEPS,
            batch_size=4,
            workers=2,
            cpus_per_worker=0.5,
            deterministic=True,
            checkpoint_every=CHECKPOINT_EVERY,
            log_every=LOG_EVERY,
            image_every=STEPS // 2,
        ),
        tracking=TrackingConfig(experiment=name, model_name=name),
    )
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    backend = backend or f"sqlite:///{output}/mlflow.db"
    steps = list(range(LOG_EVERY, STEPS + 1, LOG_EVERY))
    return Job(
        kind="training",
        command=_job("train", "--config", str(file)),
        output=output,
        progress=lambda: newest_step(output) / STEPS,
        writing=lambda: _newest_folder(output) > newest_step(output),
        result=lambda: digests(f"{output}/small/model", r"(weights|weights-raw|codec)\.safetensors"),
        variables=({"MLFLOW_TRACKING_URI": store} if store else {}) | variables,
        recorded=lambda: records.wrong(backend, name, steps),
    )


def evaluation(inputs: Inputs, folder: Path, output: str) -> Job:
    """Return an evaluation of two photographs and twelve kernels."""
    protocol = folder / "protocol.yaml"
    protocol.write_text("name: drill\ncrop: 128\nsigmas:\n  2: [0.0]\n", encoding="utf-8")
    command = _job("evaluate", "--model", inputs.model, "--images", str(inputs.held_out), "--output", output)
    return Job(
        kind="evaluation",
        command=[*command, "--protocol", str(protocol)],
        output=output,
        progress=lambda: _lines(output, "journal.jsonl") / CASES,
        writing=lambda: _lines(output, "journal.jsonl") >= CASES,
        result=lambda: _rows(output),
    )


def restoration(inputs: Inputs, output: str, *, source: str = "", workers: int = 2, **variables: str) -> Job:
    """Return a restoration of eight crops.

    Args:
        inputs: with a model.
        output: URI.
        source: URI of the crops; by default their folder.
        workers: actors of a Ray of its own, or one: in the command's own process.
        variables: its environment.
    """
    command = _job("restore", "--model", inputs.model, "--input", source or str(inputs.small), "--output", output)
    return Job(
        kind=f"restoration, {workers} workers",
        command=[*command, "--workers", str(workers)],
        output=output,
        progress=lambda: _count(output, r"crop\d+-x2\.png") / PHOTOGRAPHS,
        writing=lambda: _count(output, r"crop\d+-x2\.json") > _count(output, r"crop\d+-x2\.png"),
        result=lambda: digests(output, r"crop\d+-x2(-kernel)?\.(png|npy)"),
        variables=variables,
    )


def newest_step(output: str) -> int:
    """Return the step of the newest committed checkpoint of a training."""
    try:
        content = storage.read_bytes(uris.join(output, "small", "checkpoints", SNAPSHOT))
    except (OSError, ValueError):
        return 0
    return max(map(int, re.findall(rb"step-(\d+)", content)), default=0)


def _newest_folder(output: str) -> int:
    """Return the step of the newest checkpoint whose folder is there, committed or not."""
    try:
        files = folders.list_files(uris.join(output, "small", "checkpoints"), recursive=True)
    except (OSError, ValueError):
        return 0
    return max((int(name[5:13]) for name, _ in files if re.match(r"step-\d{8}/", name)), default=0)


def digests(folder: str, names: str) -> dict[str, str]:
    """Return the SHA-256 of every file whose name matches."""
    found = [name for name, _ in folders.list_files(folder) if re.fullmatch(names, name)]
    return {name: hashlib.sha256(storage.read_bytes(uris.join(folder, name))).hexdigest() for name in found}


def _count(folder: str, names: str) -> int:
    try:
        return sum(bool(re.fullmatch(names, name)) for name, _ in folders.list_files(folder))
    except (OSError, ValueError):
        return 0


def _lines(folder: str, name: str) -> int:
    """Return the finished lines of a journal but for its first, which is its head."""
    try:
        return max(0, storage.read_bytes(uris.join(folder, name)).count(b"\n") - 1)
    except (OSError, ValueError):
        return 0


def _rows(folder: str) -> dict[str, str]:
    """Return a digest of each method's rows without what depends on the machine's speed."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = parquet.read_table(pa.BufferReader(storage.read_bytes(uris.join(folder, "results.parquet")))).to_pylist()
    by_method: dict[str, list[dict]] = {}
    for row in rows:
        kept = {name: value for name, value in row.items() if not name.startswith(("seconds", "memory"))}
        by_method.setdefault(row["method"], []).append(kept)
    return {name: storage.digest_of(json.loads(json.dumps(of, default=str))) for name, of in by_method.items()}
