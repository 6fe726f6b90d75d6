"""Faults of a job's environment: clocks that jump, servers that are unavailable, bodies that end early."""

from __future__ import annotations

import functools
import time
from pathlib import Path

from kernels_bank.runtime import storage
from tests.drills import damage, disks, jobs, serve
from tests.drills.drill import Drill
from tests.drills.kills import make_training, reach
from tests.drills.trial import SkippedError, Trial
from tests.helpers.fault_proxy import Fault, FaultProxy

_DAY_S = 86400
_LIBRARIES = "/usr/lib/*/faketime/libfaketimeMT.so.1"
_CUTS = [Fault("cut", share=0.3, methods="GET"), Fault("status", share=0.1, methods="GET,PUT,HEAD", status=503)]


def clock(trial: Trial, moment: str, *, seconds: int) -> None:
    """The clock jumps in the middle of a training; a second start then still finds the first at work."""
    libraries = sorted(Path("/").glob(_LIBRARIES.removeprefix("/")))
    if not libraries:
        raise SkippedError("libfaketime is not installed (Debian: faketime)")
    offset = trial.folder / "clock"
    offset.write_text("+0s")
    faked = {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
        "PYTHONPATH": str(Path(__file__).with_name("clock")),
    }
    job = make_training(trial)
    sitting = trial.start(job, **faked)
    reach(trial, sitting, moment)
    offset.write_text(f"{seconds:+d}s")
    rival = trial.start(job, **faked)
    status = trial.let_end(sitting)
    refused = trial.let_end(rival)
    trial.check(refused == 2, f"a second start beside it ended with status {refused}: {rival.last_line()}")
    trial.compare_or_finish(job, status)


def away(trial: Trial, moment: str, *, server: str, seconds: float) -> None:
    """S3 or MLflow is away for a while in the middle of a training: it goes on, and no point is lost."""
    there = trial.lab.servers
    with FaultProxy(there.s3 if server == "s3" else there.mlflow) as proxy:
        job = _training_through(trial, **{server: proxy.url})
        sitting = trial.start(job)
        reach(trial, sitting, moment)
        proxy.shut()
        time.sleep(seconds)
        proxy.open()
        status = trial.let_end(sitting)
        trial.check(status == 0, f"it ended with status {status}")
        trial.compare_or_finish(job, status)


def cut_training(trial: Trial, _: str) -> None:
    """Of all reads from S3 a third end early and a tenth fail, all through a training."""
    with FaultProxy(trial.lab.servers.s3, _CUTS, seed=trial.random.randrange(10**6)) as proxy:
        trial.finish(_training_through(trial, s3=proxy.url, data=True))
        trial.check(proxy.counts["cut"], "no body was cut")


def cut_restoration(trial: Trial, _: str) -> None:
    """Photographs are read from S3 and results written to it, while bodies end early."""
    source = _upload(trial, trial.lab.pictures.small)
    output = f"s3://test/{trial.folder.name}/out"
    trial.lab.undisturbed("training")
    with FaultProxy(trial.lab.servers.s3, _CUTS, seed=trial.random.randrange(10**6)) as proxy:
        variables = trial.lab.servers.variables | {"AWS_ENDPOINT_URL": proxy.url}
        job = jobs.restoration(trial.lab.inputs, output, source=source, workers=1, **variables)
        trial.finish(job)
        trial.check(proxy.counts["cut"], "no body was cut")


def _training_through(trial: Trial, *, s3: str = "", mlflow: str = "", data: bool = False) -> jobs.Job:
    """Return a training on the servers, one of which is asked through a proxy; `data`: shards and bank lie there too.

    Args:
        trial: the try.
        s3: address that stands for the S3 server.
        mlflow: address that stands for the MLflow server.
        data: whether shards and bank are read from S3, with a cache of the try's own.
    """
    there, inputs = trial.lab.servers, trial.lab.inputs
    variables = there.variables | ({"AWS_ENDPOINT_URL": s3} if s3 else {})
    if data:
        inputs = trial.lab.inputs_but(
            shards=_upload(trial, Path(inputs.shards)), bank=_upload(trial, Path(inputs.bank))
        )
        variables |= {"XDG_CACHE_HOME": str(trial.folder / "cache")}
    return jobs.training(
        inputs,
        trial.folder,
        output=f"s3://test/{trial.folder.name}/runs",
        store=mlflow or there.mlflow,
        backend=there.backend,
        **variables,
    )


def _upload(trial: Trial, folder: Path) -> str:
    """Copy a folder into the bucket, past every proxy; returns its URI."""
    there = f"s3://test/{trial.folder.name}/{folder.name}"
    for path in folder.iterdir():
        storage.write_bytes(f"{there}/{path.name}", path.read_bytes())
    return there


def drills() -> list[Drill]:
    """Return the drills of all faults."""
    local, server = "training on disk and SQLite", "training on S3 and PostgreSQL"
    found = [
        Drill(
            f"clock-{name}", f"the clock jumps a day {name}", local, ("middle",), functools.partial(clock, seconds=by)
        )
        for name, by in (("forwards", _DAY_S), ("backwards", -_DAY_S))
    ]
    found += [
        Drill(f"away-{name}", f"{text} away for 15 s", server, ("early", "middle"), act)
        for name, text, act in (
            ("s3", "S3", functools.partial(away, server="s3", seconds=15)),
            ("mlflow", "MLflow", functools.partial(away, server="mlflow", seconds=15)),
        )
    ]
    what = "30% of reads cut, 10% of requests fail"
    found += [
        Drill("cut-training", what, "training, all on S3", ("throughout",), cut_training),
        Drill("cut-restoration", what, "restoration, S3 to S3", ("throughout",), cut_restoration),
    ]
    return [*found, *disks.drills(), *damage.drills(), *serve.drills()]
