"""Faults while training, with real processes: in the end the weights are those of an undisturbed run, bit for bit."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import safetensors.torch

from kernels_bank.runtime import storage
from pipeline.config import RunConfig
from pipeline.training.commit import COPY, SNAPSHOT
from tests.flow.training_runs import (
    REPO,
    command_of,
    environment,
    final_weights,
    kill_all,
    newest_step,
    processes,
    run_job,
    same,
    small_run,
    wait_for_step,
    wait_until,
)
from tests.helpers.fault_proxy import Fault, FaultProxy

pytestmark = [pytest.mark.flow, pytest.mark.timeout(1200)]


@pytest.fixture
def config(shards: str, bank: str, empty_store: Path, tmp_path: Path) -> RunConfig:
    """A run; its tracking store is there before it."""
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return small_run(shards, bank, str(tmp_path / "runs"))


def flip_a_bit(config: RunConfig, name: str, snapshot: dict | None = None) -> Path:
    """Damage a file of the newest checkpoint; returns its path."""
    folder = Path(config.output) / "small" / "checkpoints"
    snapshot = snapshot or json.loads((folder / SNAPSHOT).read_text())
    file = folder / snapshot["latest_checkpoint_result"]["checkpoint_dir_name"] / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x40
    file.write_bytes(data)
    return file


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# The folder's content moves to a disk of its own, on which the same command is given twice, and back.
_ON_A_SMALL_DISK = """
cp -a "$DISK/." "$KEPT"
mount -t tmpfs -o size=$KIB"k" tmpfs "$DISK" || exit 77
cp -a "$KEPT/." "$DISK"
"$@"; echo "first $?"
mount -o remount,size=1g tmpfs "$DISK"
"$@"; echo "second $?"
rm -r "$KEPT"; cp -a "$DISK" "$KEPT"
"""


def on_a_small_disk(config: RunConfig, folder: Path, **variables: str) -> str | None:
    """Run the job with room for half a checkpoint, then with more; return what it said, or nothing without such a disk.

    The full disk is one line that names the last good checkpoint, which is kept.
    """
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], check=False).returncode:
        return None
    disk, kept = Path(config.output), folder / "kept"
    kept.mkdir()
    (newest, *_) = sorted(disk.glob("small/checkpoints/step-????????"), reverse=True)
    space = sum(-(-file.stat().st_size // 4096) * 4096 for file in disk.rglob("*") if file.is_file())
    space += size_of(newest) // 2
    variables |= {"KIB": str(space // 1024), "DISK": str(disk), "KEPT": str(kept)}
    command = ["unshare", "-Urm", "bash", "-c", _ON_A_SMALL_DISK, "bash", *command_of(config, folder)]
    done = subprocess.run(
        command, cwd=REPO, env=environment(**variables), capture_output=True, text=True, timeout=500, check=False
    )
    if done.returncode == 77:
        return None
    assert done.stdout.split("\n")[0] == "first 1", done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "No space left on device" in errors[0]
    assert f"the last good checkpoint is {disk}/small/checkpoints/step-000000" in errors[0]
    assert "second 0" in done.stdout, done.stderr
    shutil.rmtree(disk)
    kept.rename(disk)
    return done.stderr


def test_kills_a_stop_and_a_full_disk_do_not_change_the_result(config: RunConfig, undisturbed: Path, tmp_path: Path):
    """SIGKILL of data workers, of a train worker, SIGTERM of the driver, SIGKILL of the driver and all of its Ray.

    Between the sittings a bit is flipped in a file of the newest checkpoint. The last ones are on a disk that is full,
    and has room again.
    """
    import mlflow

    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    job = run_job(config, tmp_path, **store)
    wait_until(lambda: bool(processes(job, "_read_row")), job)
    for worker in processes(job, "_read_row"):
        worker.kill()
    wait_for_step(config, job, 4)
    processes(job, "RayTrainWorker")[0].kill()
    wait_for_step(config, job, 8)
    os.killpg(job.pid, signal.SIGTERM)  # as `timeout`, systemd and Slurm do
    wait_until(lambda: "stopping after a checkpoint" in (tmp_path / "job.log").read_text(), job)
    os.kill(job.pid, signal.SIGTERM)  # and `timeout` to the command besides: it is the same request
    assert job.wait(timeout=120) == 130
    assert "the run resumes from its last checkpoint" in (tmp_path / "job.log").read_text()
    client = mlflow.MlflowClient(tracking_uri=store["MLFLOW_TRACKING_URI"])
    record = json.loads((Path(config.output) / "small" / "run.json").read_text())
    assert client.get_run(record["run_id"]).info.status == "KILLED"
    stopped_at = newest_step(config)
    damaged = [flip_a_bit(config, "ema.safetensors")]

    job = run_job(config, tmp_path, **store)
    wait_until(lambda: f"{damaged[0]}: sha256" in (tmp_path / "job.log").read_text(), job)
    wait_for_step(config, job, min(stopped_at + 1, 24))
    kill_all(job)
    # As if Ray Train, a moment later, had just emptied its snapshot to write it anew. By then our copy is equal to it:
    # the kill may have come between the two, when the snapshot is whole and the copy names what was deleted.
    snapshot, copy = (Path(config.output) / "small" / "checkpoints" / name for name in (SNAPSHOT, COPY))
    assert copy.exists()
    if snapshot.read_text():
        copy.write_text(snapshot.read_text())
        snapshot.write_text("")
        damaged.append(flip_a_bit(config, "optimizer.pt", json.loads(copy.read_text())))
    said_on_it = on_a_small_disk(config, tmp_path, **store)
    if said_on_it is None:
        assert run_job(config, tmp_path, **store).wait(timeout=300) == 0, (tmp_path / "job.log").read_text()[-2000:]
    assert same(final_weights(config.output), final_weights(undisturbed))
    lines = ((tmp_path / "job.log").read_text() + (said_on_it or "")).splitlines()
    said = [line for line in lines if line.startswith("damaged checkpoint: ")]
    assert [line.split(": ")[1] for line in said] == [str(file) for file in damaged]
    assert all("; the run resumes from step-" in line for line in said)
    assert all(file.parent.with_suffix(".damaged").is_dir() for file in damaged)

    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [r.info.run_id for r in runs] == [record["run_id"]]
    assert runs[0].info.status == "FINISHED"
    assert len(runs[0].inputs.dataset_inputs) == 2
    steps = [m.step for m in client.get_metric_history(record["run_id"], "loss")]
    assert steps == list(range(2, 25, 2))
    if said_on_it is None:
        pytest.skip("all but the full disk was as it should: a disk of its own needs unshare -Urm and a tmpfs")


@pytest.fixture
def proxy(s3: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3) as made:
        yield made


def test_a_death_inside_ray_is_one_line_and_s3_that_is_away_costs_no_step(
    config: RunConfig, undisturbed: Path, proxy: FaultProxy, tmp_path: Path
):
    """SIGKILL of Ray Train's controller, of the raylet and of the GCS, one after another in one run on S3.

    The command that ends the run finds S3 gone in its middle, while Ray Train's controller writes its snapshot, whose
    failure ends a run.
    """
    config = config.model_copy(update={"output": "s3://test/away"})
    variables = {
        "AWS_ENDPOINT_URL": proxy.url,
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    log, step = tmp_path / "job.log", 0
    every = config.train.checkpoint_every
    for title in ("ray::TrainController", "raylet/raylet", "gcs/gcs_server"):
        before = log.stat().st_size if log.exists() else 0
        # One checkpoint is committed, and not the next one, however fast the steps are: the kill always finds its
        # process, and no commit arrives after it.
        held = Fault("hold", methods="PUT", path=re.escape(SNAPSHOT), body=f"step-{step + 2 * every:08d}")
        proxy.faults = [held]
        job = run_job(config, tmp_path, **variables)
        wait_for_step(config, job, step + every)
        step = newest_step(config)
        below = psutil.Process(job.pid).children(recursive=True)
        (victim,) = processes(job, title)
        victim.kill()
        try:
            status = job.wait(timeout=120)
        finally:
            _, left = psutil.wait_procs(below, timeout=20)
            for process in [*left, *([job] if job.poll() is None else [])]:
                process.kill()
        said = log.read_text()[before:]
        assert status == 1, f"{title}: {said}"
        assert not left, f"{title}: {left}"
        assert "Traceback" not in said, f"{title}: {said}"
        last = said.splitlines()[-1]
        assert [line for line in said.splitlines() if line.startswith("error: ")] == [last], f"{title}: {said}"
        assert "the same command resumes" in last, f"{title}: {said}"
        assert newest_step(config) == step

    before = log.stat().st_size
    assert newest_step(config) == 3 * every < config.train.steps  # snapshots are still to be written
    proxy.faults = [Fault("shut", methods="PUT", path=re.escape(SNAPSHOT), times=1)]
    job = run_job(config, tmp_path, **variables)
    try:
        wait_until(lambda: not proxy.is_open, job)
        wait_until(lambda: "waits for its storage" in log.read_text()[before:], job)
        proxy.open()
        assert job.wait(timeout=300) == 0, log.read_text()
    finally:
        if job.poll() is None:
            kill_all(job)
    assert "resumes from its last checkpoint" not in log.read_text()[before:]  # no worker was lost
    ended = safetensors.torch.load(storage.read_bytes("s3://test/away/small/model/weights.safetensors"))
    assert same(ended, final_weights(undisturbed))
