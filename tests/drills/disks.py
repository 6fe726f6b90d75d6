"""Faults of the place a job writes to: a full disk, a folder that becomes read-only, a folder that is deleted."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.drills.drill import Drill
from tests.drills.jobs import Job
from tests.drills.kills import Maker, make_bank, make_evaluation, make_restoration, make_sharding, make_training, reach
from tests.drills.trial import DrillError, MissedError, SkippedError, Trial


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    """Mount a disk of this size at the folder. Raises SkippedError where that is not allowed."""
    if os.geteuid() != 0:
        raise SkippedError("only root can mount a small disk")
    folder.mkdir(parents=True, exist_ok=True)
    if mount("-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)).returncode:
        raise SkippedError("a tmpfs cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


def mount(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Call `mount`."""
    return subprocess.run(["mount", *arguments], check=False, capture_output=True)


def full(make: Maker, trial: Trial, moment: str) -> None:
    """The disk has room for a part of the result; later for all of it."""
    job = make(trial)
    share = {"early": trial.random.uniform(0.05, 0.3), "middle": trial.random.uniform(0.4, 0.85)}[moment]
    kib = int(share * size_of(trial, job) / 1024) + 4
    with small_disk(Path(job.output), kib):
        sitting = trial.start(job)
        status = trial.let_end(sitting)
        trial.check(status == 1, f"on a disk of {kib} KiB it ended with status {status}")
        why = [line for line in sitting.errors() if "space" in line and job.output in line]
        trial.check(why, f"it does not say what and where: {sitting.last_line()}")
        mount("-o", "remount,size=2g", job.output)
        trial.finish(job)


def size_of(trial: Trial, job: Job) -> int:
    """Return the bytes that the job's output has in the end, in whole blocks."""
    trial.lab.undisturbed(job.kind)
    files = [path for path in trial.lab.output_of(job.kind).rglob("*") if path.is_file()]
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in files)


def read_only(make: Maker, trial: Trial, moment: str) -> None:
    """The output becomes read-only, at the start or in the middle, and later writable again."""
    job = make(trial)
    with small_disk(Path(job.output), 2**21):
        if moment == "start":
            mount("-o", "remount,ro", job.output)
            sitting = trial.start(job)
        else:
            sitting = trial.start(job)
            reach(trial, sitting, moment)
            deadline = time.monotonic() + 20
            while mount("-o", "remount,ro", job.output).returncode:  # busy while a file is open for writing
                if sitting.poll() is not None:
                    raise MissedError("it ended before its files were all closed")
                if time.monotonic() > deadline:
                    raise SkippedError("its files are never all closed, so its disk cannot become read-only")
        status = trial.let_end(sitting)
        if status == 0 and moment != "start":
            raise MissedError("all was written before its disk became read-only")
        trial.check(status in (1, 2), f"on a read-only disk it ended with status {status}")
        mount("-o", "remount,rw", job.output)
        trial.finish(job)


def deleted(make: Maker, trial: Trial, moment: str) -> None:
    """The output is deleted under the job."""
    job = make(trial)
    sitting = trial.start(job)
    reach(trial, sitting, moment)
    deadline = time.monotonic() + 20
    while Path(job.output).exists():  # the job goes on writing into it
        shutil.rmtree(job.output, ignore_errors=True)
        if time.monotonic() > deadline:
            raise DrillError("the output cannot be deleted: the job is faster")
    status = trial.let_end(sitting)
    trial.check(status in (0, 1, 2), f"it ended with status {status}")
    trial.finish(job)


def drills() -> list[Drill]:
    """Return all drills of this file."""
    jobs: list[tuple[str, str, Maker]] = [
        ("training", "training on disk and SQLite", make_training),
        ("shards", "shard job", make_sharding),
        ("bank", "bank job", make_bank),
        ("evaluation", "evaluation", make_evaluation),
        ("restoration", "restoration, 2 actors", make_restoration),
    ]
    kinds = [
        ("full-disk", "full disk", ("early", "middle"), full),
        ("read-only", "read-only output", ("start", "middle"), read_only),
        ("deleted", "output deleted", ("middle",), deleted),
    ]
    return [
        Drill(f"{kind}-{name}", what, where, moments, functools.partial(act, make))
        for kind, what, moments, act in kinds
        for name, where, make in jobs
    ]
