"""What all tries share: inputs, servers, and what each job ends with when nothing disturbs it. Made when first used."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.drills import jobs
from tests.drills.jobs import Inputs, Job
from tests.helpers import servers

REPO = Path(__file__).parents[2]
BUCKET = "test"


@dataclass(frozen=True)
class Servers:
    """An S3 server and an MLflow server on PostgreSQL (on SQLite where that is not installed)."""

    s3: str
    mlflow: str
    backend: str
    variables: dict[str, str]  # of the S3 server's clients


class Lab(contextlib.ExitStack):
    """The surroundings of the drills, in a folder that goes with it. Not for threads, until `prepare` was called."""

    ending = False  # no try starts a command any more

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="bsl-", dir="/tmp")))
        self._results: dict[str, dict[str, str]] = {}
        # Drills that spoil a cache have one of their own.
        self.cache = self.folder / "cache"

    @functools.cached_property
    def pictures(self) -> Inputs:
        """Photographs, and small crops of them."""
        import numpy as np
        from PIL import Image

        from pipeline.data.photographs import copy_photographs

        train, held_out = copy_photographs(self.folder / "photographs")
        small = self.folder / "crops"
        small.mkdir()
        picture = np.asarray(Image.open(train / "coffee.png").convert("RGB"))
        for number in range(jobs.PHOTOGRAPHS):
            row, column = divmod(number, 4)
            crop = picture[row * 160 : row * 160 + 144, column * 140 : column * 140 + 128]
            Image.fromarray(crop).save(small / f"crop{number}.png")
        return Inputs(train, held_out, small)

    @functools.cached_property
    def inputs(self) -> Inputs:
        """All that jobs read: the shards, the bank and the model of undisturbed runs."""
        found = replace(self.pictures, shards=self._make("shards"), bank=self._make("bank"))
        return replace(found, model=str(self.folder / "undisturbed" / "runs" / "small" / "model"))

    def undisturbed(self, kind: str) -> dict[str, str]:
        """Return the result of a job of this kind that nothing happened to."""
        if kind not in self._results:
            self._make(kind)
        return self._results[kind]

    @functools.cached_property
    def model(self) -> str:
        """The folder of an undisturbed training's model."""
        self.undisturbed("training")
        return self.inputs.model

    def inputs_but(self, **changed: str) -> Inputs:
        """Return the inputs with some in other places."""
        return replace(self.inputs, **changed)

    def output_of(self, kind: str) -> Path:
        """Return where the output of the undisturbed job of this kind lies."""
        return self.folder / "undisturbed" / ("runs" if kind == "training" else _folder_name(kind))

    def prepare(self) -> None:
        """Make everything now, so that tries at once find it made."""
        for kind in ("training", "evaluation", "restoration, 2 workers", "restoration, 1 workers"):
            self.undisturbed(kind)
        _ = self.half_a_training, self.servers

    @functools.cached_property
    def half_a_training(self) -> Path:
        """The folder of a training named `half` that a signal stopped after two checkpoints or more."""
        self.undisturbed("training")
        place = self.folder / "half"
        place.mkdir()
        self._say("half a training")
        self._interrupt(jobs.training(self.inputs, place))
        return place

    def _interrupt(self, job: Job) -> None:
        """Stop a job by a signal in its middle; it has then written a checkpoint."""
        with self._started(job) as process:
            while job.progress() < 0.4 and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=300)
        if not 0 < job.progress() < 1:
            raise RuntimeError(f"half a training stands at {job.progress():.0%}")

    @contextlib.contextmanager
    def _started(self, job: Job) -> Iterator[subprocess.Popen[bytes]]:
        temporary = self.folder / "t"
        temporary.mkdir(exist_ok=True)
        environment = jobs.environment(temporary, self.cache)
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(
                job.command, cwd=REPO, env=environment | job.variables, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            shutil.rmtree(temporary, ignore_errors=True)

    @functools.cached_property
    def servers(self) -> Servers:
        """The servers, started when first asked for; S3 has a bucket."""
        import boto3

        self._say("starting S3, PostgreSQL and MLflow")
        s3 = self.enter_context(servers.s3_server())
        variables = servers.s3_variables(s3)
        os.environ.update(variables)  # we look into the bucket too
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        backend = self.enter_context(servers.postgres_server()) or f"sqlite:///{self.folder}/server.db"
        place = self.folder / "mlflow"
        place.mkdir()
        uri = self.enter_context(servers.mlflow_server(backend, f"s3://{BUCKET}/mlflow", place, variables))
        return Servers(s3, uri, backend, variables)

    def _make(self, kind: str) -> str:
        """Run a job undisturbed and keep its result; returns where its output is."""
        folder = self.folder / "undisturbed"
        folder.mkdir(exist_ok=True)
        output = str(self.output_of(kind))
        job = self._job(kind, folder, output)
        if kind not in self._results:
            self._say(f"an undisturbed run first: {kind}")
            self._run(job)
            self._results[kind] = job.result()
            if wrong := job.recorded():
                raise RuntimeError(f"the undisturbed {kind} is not recorded as it should be: {wrong}")
        return job.output

    def _job(self, kind: str, folder: Path, output: str) -> Job:
        match kind:
            case "shards":
                return jobs.sharding(self.pictures, output)
            case "bank":
                return jobs.bank(output)
            case "training":
                return jobs.training(self.inputs, folder)
            case "evaluation":
                self.undisturbed("training")
                return jobs.evaluation(self.inputs, folder, output)
        self.undisturbed("training")
        return jobs.restoration(self.inputs, output, workers=int(kind.split()[1]))

    def _run(self, job: Job) -> None:
        with self._started(job) as process:
            if process.wait(timeout=900):
                said = (self.folder / "log").read_text(errors="replace")
                raise RuntimeError(f"an undisturbed {job.kind} failed: {said[-2000:]}")


def _folder_name(kind: str) -> str:
    return kind.replace(", ", "-").replace(" ", "-")
