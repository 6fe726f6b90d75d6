"""Kills: every kind of process at three moments, SIGTERM to the process group, and starts that race each other."""

from __future__ import annotations

import functools
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.drills import jobs
from tests.drills.drill import Drill
from tests.drills.jobs import Job
from tests.drills.trial import PATIENCE_S, DrillError, MissedError, Sitting, Trial

MOMENTS = ("early", "middle", "writing")
# By name, what a process's command line begins with; the driver is the command itself.
TRAINING = {
    "driver": "",
    "controller": r"ray::TrainController",
    "worker": r"ray::RayTrainWorker",
    "data worker": r"ray::.*_read_row",
    "raylet": r"(.*/)?raylet$",
    "gcs": r"(.*/)?gcs_server$",
}
# All that so small a training learns from is read while its first steps are made.
_MOMENTS_OF = {"data worker": ("early",)}
_RACERS = 3
Maker = Callable[[Trial], Job]


def make_training(trial: Trial, *, server: bool = False) -> Job:
    """Return a training with local output and SQLite, or on the servers with output on S3."""
    if not server:
        return jobs.training(trial.lab.inputs, trial.folder)
    there = trial.lab.servers
    output = f"s3://test/{trial.folder.name}"
    return jobs.training(
        trial.lab.inputs, trial.folder, output=output, store=there.mlflow, backend=there.backend, **there.variables
    )


def make_sharding(trial: Trial) -> Job:
    """Return a shard job."""
    return jobs.sharding(trial.lab.pictures, str(trial.folder / "out"))


def make_bank(trial: Trial) -> Job:
    """Return a bank job."""
    return jobs.bank(str(trial.folder / "out"))


def make_evaluation(trial: Trial) -> Job:
    """Return an evaluation."""
    trial.lab.undisturbed("training")
    return jobs.evaluation(trial.lab.inputs, trial.folder, str(trial.folder / "out"))


def make_restoration(trial: Trial) -> Job:
    """Return a restoration by two actors."""
    trial.lab.undisturbed("training")
    return jobs.restoration(trial.lab.inputs, str(trial.folder / "out"))


def victims(trial: Trial, sitting: Sitting, pattern: str) -> list[psutil.Process]:
    """Return the processes of the sitting that a pattern stands for, in the order of their numbers."""
    if not pattern:
        return [psutil.Process(sitting.process.pid)]
    found = []
    for process in trial.processes():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if command and re.match(pattern, command[0]):
            found.append(process)
    return sorted(found, key=lambda one: one.pid)


def reach(trial: Trial, sitting: Sitting, moment: str, ready: Callable[[], object] = lambda: True) -> None:
    """Wait for a moment of the job's work: its share, and a little more, are drawn; `ready` must hold too.

    Raises:
        DrillError: it did not come.
    """
    job = sitting.job
    share = {"early": 0.0, "middle": trial.random.uniform(0.15, 0.7), "writing": trial.random.uniform(0.0, 0.7)}[moment]
    later = trial.random.uniform(0.0, {"early": 4.0, "middle": 0.3, "writing": 0.01}[moment])

    def come() -> bool:
        return job.progress() >= share and (moment != "writing" or job.writing()) and bool(ready())

    trial.wait_for(come, sitting, f"the moment '{moment}'")
    time.sleep(later)


def kill(make: Maker, pattern: str, trial: Trial, moment: str) -> None:
    """Kill one process of the job at a moment, then give the command until it ends well."""
    job = make(trial)
    sitting = trial.start(job)
    reach(trial, sitting, moment, lambda: victims(trial, sitting, pattern))
    if not (found := victims(trial, sitting, pattern)):
        raise MissedError("the process to be killed had done its work")
    trial.random.choice(found).kill()
    if pattern:
        if trial.let_end(sitting) == 0:
            trial.compare(job)
            return
    else:
        sitting.wait()
    trial.finish(job)


def end_group(make: Maker, trial: Trial, moment: str) -> None:
    """SIGTERM to the process group: it ends within 30 s with a line, and the same command resumes it."""
    job = make(trial)
    sitting = trial.start(job)
    reach(trial, sitting, moment, lambda: catches(sitting.process.pid, signal.SIGTERM))
    before, asked = job.progress(), time.monotonic()
    os.killpg(sitting.process.pid, signal.SIGTERM)
    with trial.going_on():
        status = trial.let_end(sitting)
        took = time.monotonic() - asked
        trial.check(took < 30, f"it took {took:.0f} s to end")
        if job.kind == "training":
            trial.check(status in (0, 130), f"status {status} instead of 130")
            # A signal that comes before the workers do finds nothing to keep; then the line says so.
            begun = any("stopping after a checkpoint" in line for line in sitting.said())
            kept = job.progress() > before or before == 1
            trial.check(kept or not begun, f"no checkpoint was written for it: {sitting.last_line()}")
        trial.check(status == 0 or sitting.said(), "it ended without a word")
    trial.finish(job)


def catches(process: int, number: signal.Signals) -> bool:
    """Whether a process handles a signal; a command does once Python is up."""
    status = Path(f"/proc/{process}/status").read_text()
    (caught,) = re.findall(r"^SigCgt:\t(\w+)$", status, re.MULTILINE)
    return bool(int(caught, 16) >> (number - 1) & 1)


def race(make: Maker, trial: Trial, _: str) -> None:
    """Give the command several times at once: one does the work, the others say who does, or find it done."""
    job = make(trial)
    sittings = [trial.start(job) for _ in range(_RACERS)]
    deadline = time.monotonic() + PATIENCE_S
    while not any(one.poll() == 0 for one in sittings) and any(one.poll() is None for one in sittings):
        if time.monotonic() > deadline:
            raise DrillError(f"none ended within {PATIENCE_S:g} s")
        time.sleep(0.1)
    before = _written(job)
    ended = [trial.let_end(sitting) for sitting in sittings]
    trial.check(0 in ended and set(ended) <= {0, 2}, f"they ended with {sorted(ended)}, not one 0 and else 2")
    trial.check(_written(job) == before, "two of them did the work")
    trial.compare(job)


def _written(job: Job) -> dict[str, tuple[int, int]]:
    """Return inode and time of every file of the result: both tell whether it was written again."""
    names = job.result().keys()
    found = {path: path.stat() for path in Path(job.output).rglob("*") if path.name in names}
    return {str(path): (about.st_ino, about.st_mtime_ns) for path, about in found.items()}


def drills() -> list[Drill]:
    """Return all drills of this file, those of the whole first."""
    server = functools.partial(make_training, server=True)
    places: list[tuple[str, str, Maker]] = [
        ("local", "training on disk and SQLite", make_training),
        ("server", "training on S3 and PostgreSQL", server),
    ]
    found = [
        Drill(
            f"kill-{kind.replace(' ', '-')}-{place}",
            f"SIGKILL of the {kind}",
            where,
            _MOMENTS_OF.get(kind, MOMENTS),
            functools.partial(kill, make, pattern),
        )
        for place, where, make in places
        for kind, pattern in TRAINING.items()
    ]
    others: list[tuple[str, str, Maker, dict[str, str]]] = [
        ("shards", "shard job", make_sharding, {"driver": "", "task": r"ray::"}),
        ("bank", "bank job", make_bank, {"driver": "", "task": r"ray::"}),
        ("evaluation", "evaluation", make_evaluation, {"driver": "", "task": r"ray::.*(compute_cases|MapBatches)"}),
        ("restoration", "restoration, 2 actors", make_restoration, {"driver": "", "actor": r"ray::.*Worker"}),
    ]
    found += [
        Drill(
            f"kill-{kind}-{name}",
            f"SIGKILL of the {kind}",
            where,
            ("middle",) if pattern else MOMENTS,
            functools.partial(kill, make, pattern),
        )
        for name, where, make, kinds in others
        for kind, pattern in kinds.items()
    ]
    found += [
        Drill(
            f"sigterm-{place}", "SIGTERM to the group", where, ("early", "middle"), functools.partial(end_group, make)
        )
        for place, where, make in places
    ]
    found += [
        Drill(f"sigterm-{name}", "SIGTERM to the group", where, ("middle",), functools.partial(end_group, make))
        for name, where, make, _ in others
    ]
    races = [("training", *places[0][1:]), *((name, where, make) for name, where, make, _ in others[:2])]
    found += [
        Drill(f"race-{name}", f"{_RACERS} starts at once", where, ("start",), functools.partial(race, make))
        for name, where, make in races
    ]
    return found
