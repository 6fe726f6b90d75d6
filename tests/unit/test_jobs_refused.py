"""What the system refuses a job is one line with the path: every job is listed here and tried."""

from __future__ import annotations

import contextlib
import errno
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from kernels_bank.runtime import storage

JOBS = Path(__file__).parents[2] / "jobs"
# The arguments of each job that writes, for a place and a folder of photographs.
WRITES = {
    "build_kernel_bank": lambda place, source: ["--output", place, "--gaussian", "8", "--motion", "8"],
    "evaluate": lambda place, source: ["--model", "shipped:none", "--images", source, "--output", place],
    "quickstart": lambda place, source: ["--output", place],
    "registry": lambda place, source: [
        "import-weights",
        "x",
        "--name",
        "m",
        "--tracking-uri",
        f"sqlite:///{place}/m.db",
    ],
    "restore": lambda place, source: ["--input", source, "--output", place],
    "shard_images": lambda place, source: ["--source", source, "--output", place],
    "train": lambda place, source: [
        *("--name", "n", "--data.shards", "s", "--data.bank", "b", "--train.steps", "1", "--output", place),
    ],
}
# Their first write comes before any Ray, network or model.
EARLY = WRITES.keys() - {"registry", "restore"}
READS = {"doctor", "plan", "serve"}  # the first says in its table what cannot be written to


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.zeros((40, 40, 3), np.uint8))
    return str(tmp_path / "in")


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Iterator[Callable[..., tuple[int, str]]]:
    """Run a job as its command line does; return its exit status and the one line that it said."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr("pipeline.training.fit.data_digests", lambda config: {"shards": "1", "bank": "2"})
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(job: str, arguments: list[str]) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [str(JOBS / f"{job}.py"), *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(JOBS / f"{job}.py"), run_name="__main__")
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert said.startswith("error: ")
        return int(end.value.code), said

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield run
    for number, handler in handlers.items():  # a job's command line keeps its own until the process has ended
        signal.signal(number, handler)


def test_every_job_is_listed():
    assert {path.stem for path in JOBS.glob("[a-z]*.py")} == WRITES.keys() | READS


@pytest.mark.parametrize("job", WRITES)
@pytest.mark.parametrize("place", ["file/below", "n" * 300])
def test_a_place_that_takes_no_files_is_a_wrong_request(ended, tmp_path: Path, source: str, job: str, place: str):
    (tmp_path / "file").write_bytes(b"mine")
    status, said = ended(job, WRITES[job](f"{tmp_path}/{place}", source))
    assert status == 2
    assert f"{tmp_path}/{place}"[:60] in said
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in"]


@pytest.mark.parametrize("job", sorted(EARLY))
def test_a_full_disk_is_a_failed_run(ended, tmp_path: Path, source: str, monkeypatch, job: str):
    @contextlib.contextmanager
    def full(uri: str | Path) -> Iterator[None]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(uri))
        yield

    monkeypatch.setattr(storage, "atomic_writer", full)
    arguments = WRITES[job](f"{tmp_path}/out", source)
    if job == "shard_images":  # cutting begins with Ray
        arguments = ["--download", "div2k-valid", "--downloads", f"{tmp_path}/out", "--output", f"{tmp_path}/shards"]
    status, said = ended(job, arguments)
    assert status == 1
    assert f"{tmp_path}/out" in said
    assert "o space left on device; free space there; what is finished is kept, the same command resumes" in said
