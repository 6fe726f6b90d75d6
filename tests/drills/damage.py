"""Damaged files: one bit is another in a checkpoint, in a cached bank, in a bank, a shard or a model."""

from __future__ import annotations

import functools
import os
import random
import shutil
from pathlib import Path

from tests.drills import jobs
from tests.drills.drill import Drill
from tests.drills.jobs import Job
from tests.drills.trial import Trial

_CHECKPOINT = (
    "weights.safetensors",
    "ema.safetensors",
    "optimizer.pt",
    "codec.safetensors",
    "model.json",
    "state.json",
)
_MODEL = ("weights.safetensors", "codec.safetensors", "model.json")


def flip(file: Path, dice: random.Random) -> None:
    """Make one bit of the file another."""
    content = bytearray(file.read_bytes())
    at = dice.randrange(len(content))
    content[at] ^= 1 << dice.randrange(8)
    file.write_bytes(content)


def zero(file: Path, dice: random.Random) -> None:
    """Fill a quarter of the file, somewhere in it, with zeros: what a lost write leaves."""
    content = bytearray(file.read_bytes())
    length = len(content) // 4
    at = dice.randrange(128, len(content) - length)
    content[at : at + length] = bytes(length)
    file.write_bytes(content)


def checkpoint(trial: Trial, moment: str) -> None:
    """A file of the newest checkpoint is damaged: that is said, and the run resumes from the one before."""
    half = trial.lab.half_a_training
    shutil.copytree(half / "runs", trial.folder / "runs")
    job = jobs.training(trial.lab.inputs, trial.folder, name=half.name)
    step = jobs.newest_step(job.output)
    flip(Path(job.output, "small", "checkpoints", f"step-{step:08d}", moment), trial.random)
    trial.finish(job)
    first = trial.sittings[0]
    trial.check(
        any(f"step-{step:08d}" in line for line in first.said()), f"the damage was not said: {first.last_line()}"
    )


def cached_bank(trial: Trial, moment: str) -> None:
    """The unpacked bank in the node's cache is damaged: it is unpacked again."""
    job = jobs.training(trial.lab.inputs, trial.folder, XDG_CACHE_HOME=str(trial.folder / "cache"))
    trial.lab.undisturbed("training")
    shutil.copytree(trial.lab.cache, trial.folder / "cache")
    (file,) = (trial.folder / "cache").rglob("banks/*.npy")
    {"bit": flip, "zeros": zero}[moment](file, trial.random)
    trial.finish(job)


def shard(trial: Trial, moment: str) -> None:
    """A shard is damaged: a training names it and ends."""
    copy = Path(shutil.copytree(trial.lab.inputs.shards, trial.folder / "shards"))
    job = jobs.training(trial.lab.inputs_but(shards=str(copy)), trial.folder)
    _refused(trial, job, copy / ("manifest.json" if moment == "manifest" else "train-000001.tar"))


def bank(trial: Trial, moment: str) -> None:
    """A file of the bank is damaged: a training names it and ends."""
    copy = Path(shutil.copytree(trial.lab.inputs.bank, trial.folder / "bank"))
    inputs = trial.lab.inputs_but(bank=str(copy))
    job = jobs.training(inputs, trial.folder, XDG_CACHE_HOME=str(trial.folder / "cache"))
    names = {"kernels": "kernels-00001.parquet", "codec": "codec.safetensors", "manifest": "manifest.json"}
    _refused(trial, job, copy / names[moment])


def model(trial: Trial, moment: str) -> None:
    """A file of a model folder is damaged: a restoration names it and ends."""
    copy = Path(shutil.copytree(trial.lab.model, trial.folder / "model"))
    job = jobs.restoration(trial.lab.inputs_but(model=str(copy)), str(trial.folder / "out"), workers=1)
    _refused(trial, job, copy / moment)


def _refused(trial: Trial, job: Job, file: Path) -> None:
    """Damage a file and expect one line that names it."""
    before = file.stat()
    flip(file, trial.random)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # a disk that forgets tells nobody
    sitting = trial.start(job)
    status = trial.let_end(sitting)
    trial.check(status in (1, 2), f"it ended with status {status} all the same")
    if status:
        trial.check(file.name in sitting.last_line(), f"the file is not named: {sitting.last_line()}")
    trial.nothing_left()


def drills() -> list[Drill]:
    """Return all drills of this file."""
    training = "training on disk and SQLite"
    refusals = functools.partial(Drill, what="one bit flipped")
    return [
        Drill("damaged-checkpoint", "one bit of the newest checkpoint flipped", training, _CHECKPOINT, checkpoint),
        Drill("damaged-cache", "the cached bank damaged", training, ("bit", "zeros"), cached_bank),
        refusals("damaged-shard", where="a shard that a training reads", moments=("shard", "manifest"), act=shard),
        refusals("damaged-bank", where="a bank", moments=("kernels", "codec", "manifest"), act=bank),
        refusals("damaged-model", where="a model that a restoration loads", moments=_MODEL, act=model),
    ]
