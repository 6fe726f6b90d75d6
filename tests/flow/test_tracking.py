"""Runs and the background logger on a real SQLite store and a real server: nothing doubled, lost or given away."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kernels_bank.runtime.errors import BadRequestError
from pipeline.tracking import runs
from pipeline.tracking.logger import LOST, RunLogger
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.store import RunRef, client
from tests.helpers.fault_proxy import Fault, FaultProxy

pytestmark = pytest.mark.flow


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    return request.node.name


def steps(uri: str, run_id: str, key: str) -> list[int]:
    return [metric.step for metric in client(uri).get_metric_history(run_id, key)]


def runs_of(uri: str, experiment: str) -> list:
    api = client(uri)
    return api.search_runs([api.get_experiment_by_name(experiment).experiment_id])


def test_a_run_is_opened_once_and_reopened_by_its_id(store: str, experiment: str):
    params = {"train": {"steps": 5}, "many": {str(n): n for n in range(230)}}
    ref = runs.open_run(experiment, "a", store, params, {"shards": "1"})
    runs.finish(ref, "FAILED")
    longer = {**params, "train": {"steps": 9, "new": 1}}
    again = runs.open_run(experiment, "a", store, longer, {"shards": "2"}, resume_id=ref.run_id)
    assert again.run_id == ref.run_id
    (run,) = runs_of(store, experiment)
    assert run.info.status == "RUNNING"
    assert len(run.data.params) == 232
    assert run.data.params["train.steps"] == "5"  # a parameter of MLflow cannot change
    assert run.data.tags["resumed.train.steps"] == "9"
    assert run.data.params["train.new"] == "1"
    assert run.data.tags["shards"] == "2"
    runs.finish(again, "FINISHED")
    assert runs_of(store, experiment)[0].info.status == "FINISHED"


def test_a_killed_driver_leaves_no_double(sqlite_store: str, experiment: str):
    script = (
        "import os, signal\n"
        "from pipeline.tracking import runs\n"
        f"print(runs.open_run({experiment!r}, 'a', {sqlite_store!r}, {{}}, {{}}, key='k').run_id, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    first = killed.stdout.split()[-1]
    assert runs.open_run(experiment, "a", sqlite_store, {}, {}, key="k").run_id == first
    # With metrics it belongs to work whose files are gone: closed, and a new run takes over.
    client(sqlite_store).log_metric(first, "loss", 1.0, step=1)
    second = runs.open_run(experiment, "a", sqlite_store, {}, {}, key="k").run_id
    assert second != first
    status = {run.info.run_id: run.info.status for run in runs_of(sqlite_store, experiment)}
    assert status == {first: "KILLED", second: "RUNNING"}


def test_other_runs_of_the_experiment_are_left_alone(store: str, experiment: str):
    one = runs.open_run(experiment, "a", store, {}, {}, key="one")
    two = runs.open_run(experiment, "a", store, {}, {}, key="two")
    assert one.run_id != two.run_id
    assert {run.info.status for run in runs_of(store, experiment)} == {"RUNNING"}


def test_drivers_that_start_at_once_share_an_experiment(sqlite_store: str, experiment: str):
    opened: list[str] = []
    threads = [
        threading.Thread(
            target=lambda n=n: opened.append(runs.open_run(experiment, f"r{n}", sqlite_store, {}, {}).run_id)
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(opened)) == 4
    assert {run.info.run_id for run in runs_of(sqlite_store, experiment)} == set(opened)


def test_a_deleted_experiment_is_said_so(sqlite_store: str, experiment: str):
    runs.open_run(experiment, "a", sqlite_store, {}, {})
    api = client(sqlite_store)
    api.delete_experiment(api.get_experiment_by_name(experiment).experiment_id)
    with pytest.raises(BadRequestError, match=rf"experiment '{experiment}' was deleted"):
        runs.open_run(experiment, "b", sqlite_store, {}, {})


def pictures(uri: str, run_id: str) -> list[str]:
    """`key step` of every whole picture of a run, sorted: one that is there twice is listed twice."""
    names = [Path(info.path).name for info in client(uri).list_artifacts(run_id, "images")]
    return sorted(f"{name.split('+')[0]} {name.split('+')[2]}" for name in names if name.endswith(".png"))


def thumbnails(uri: str, run_id: str) -> int:
    return sum(info.path.endswith("+compressed.webp") for info in client(uri).list_artifacts(run_id, "images"))


def test_the_logger_writes_points_pictures_and_tags(store: str, experiment: str, tmp_path: Path):
    ref = runs.open_run(experiment, "a", store, {}, {})
    picture = np.random.default_rng(0).integers(0, 255, (8, 9, 3), np.uint8)
    with RunLogger(ref, home=str(tmp_path / "run"), interval_s=0.05) as logger:
        for step in range(1, 1206):  # more than a request may hold
            logger.metrics(step, {"loss": 1 / step, "psnr": float(step)})
        logger.image("sample/row", picture, step=7)
        logger.tag("damaged", "a, b")
        picture[:] = 0
    assert not (tmp_path / "run").exists()  # nothing had to wait
    runs.log_input(ref, "shards", "d" * 64, "s3://me:hunter22@bucket/shards")
    api = client(store)
    history = api.get_metric_history(ref.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(n, 1 / n) for n in range(1, 1206)]
    assert api.get_run(ref.run_id).data.tags["damaged"] == "a, b"
    assert pictures(store, ref.run_id) == ["sample~row 7"]
    assert thumbnails(store, ref.run_id) == 1
    from PIL import Image

    shown = next(i.path for i in api.list_artifacts(ref.run_id, "images") if i.path.endswith(".png"))
    stored = np.asarray(Image.open(api.download_artifacts(ref.run_id, shown, str(tmp_path))))
    assert np.array_equal(stored, np.random.default_rng(0).integers(0, 255, (8, 9, 3), np.uint8))
    (data,) = api.get_run(ref.run_id).inputs.dataset_inputs
    assert json.loads(data.dataset.source) == {"uri": "s3://***@bucket/shards", "sha256": "d" * 64}


def test_an_evaluation_recorded_twice_is_there_once(sqlite_store: str, experiment: str, tmp_path: Path):
    ref = runs.open_run(experiment, "a", sqlite_store, {}, {})
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "summary.json").write_text("{}")
    for _ in range(2):
        runs.log_evaluation(ref, {"psnr.x": 30.5}, tmp_path / "files", "evaluation/x")
    assert len(client(sqlite_store).get_metric_history(ref.run_id, "psnr.x")) == 1
    (file,) = client(sqlite_store).list_artifacts(ref.run_id, "evaluation/x")
    assert file.path == "evaluation/x/summary.json"


def test_steps_repeated_after_a_restart_are_dropped(sqlite_store: str, experiment: str):
    ref, picture = runs.open_run(experiment, "a", sqlite_store, {}, {}), np.zeros((4, 4, 3), np.uint8)
    for last in (6, 10):  # the second sitting starts at the checkpoint, before what was logged
        with RunLogger(ref, interval_s=0.05) as logger:
            for step in range(4 if last == 10 else 0, last + 1):
                logger.metrics(step, {"loss": float(step + last)})
            logger.image("sample", picture, step=5)
    history = client(sqlite_store).get_metric_history(ref.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(n, n + 6.0) for n in range(7)] + [
        (n, n + 10.0) for n in (7, 8, 9, 10)
    ]
    assert pictures(sqlite_store, ref.run_id) == ["sample 5"]


@pytest.fixture
def proxy(tracking_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with FaultProxy(tracking_server) as made:
        yield made


def test_a_server_that_is_away_costs_no_time_and_no_point(
    proxy: FaultProxy, tracking_server: str, experiment: str, caplog: pytest.LogCaptureFixture
):
    ref = runs.open_run(experiment, "a", proxy.url, {}, {})
    with caplog.at_level(logging.WARNING), RunLogger(ref, interval_s=0.05) as logger:
        logger.metrics(0, {"loss": 0.0})
        wait_until(lambda: steps(tracking_server, ref.run_id, "loss") == [0])
        proxy.shut()
        started = time.monotonic()
        for step in range(1, 50):
            logger.metrics(step, {"loss": float(step)})
        logger.image("sample", np.zeros((4, 4, 3), np.uint8), step=3)
        assert time.monotonic() - started < 0.5  # no call waits for the server
        wait_until(lambda: "all is kept and sent later" in caplog.text)
        assert steps(tracking_server, ref.run_id, "loss") == [0]
        proxy.open()
    assert steps(tracking_server, ref.run_id, "loss") == list(range(50))
    assert client(tracking_server).list_artifacts(ref.run_id, "images")
    assert "are lost" not in caplog.text


def test_what_is_flushed_is_there_and_a_server_that_is_away_is_not_waited_for(
    proxy: FaultProxy, tracking_server: str, experiment: str
):
    ref = runs.open_run(experiment, "a", proxy.url, {}, {})
    with RunLogger(ref, interval_s=3600) as logger:  # nothing is sent by itself
        for step in range(3):
            logger.metrics(step, {"loss": float(step)})
        logger.flush()
        assert steps(tracking_server, ref.run_id, "loss") == [0, 1, 2]
        proxy.shut()
        logger.metrics(3, {"loss": 3.0})
        logger.flush(limit_s=60)  # ends with the first try that fails
        started = time.monotonic()
        logger.flush(limit_s=60)
        assert time.monotonic() - started < 5
        proxy.open()
    assert steps(tracking_server, ref.run_id, "loss") == [0, 1, 2, 3]


def test_a_server_that_stays_away_ends_in_a_warning(
    proxy: FaultProxy, experiment: str, caplog: pytest.LogCaptureFixture
):
    ref = runs.open_run(experiment, "a", proxy.url, {}, {})
    proxy.shut()
    logger = RunLogger(ref, interval_s=0.05)
    with caplog.at_level(logging.WARNING):
        logger.metrics(1, {"loss": 1.0, "psnr": 2.0})
        started = time.monotonic()
        logger.close(limit_s=2)
    assert time.monotonic() - started < 10
    assert f"2 points and files of run {ref.run_id} are lost" in caplog.text
    runs.finish(ref, "FINISHED")  # warns too, and does not hide what the caller may be handling
    assert "could not be closed as FINISHED" in caplog.text
    proxy.open()


def flaky(share: float) -> list[Fault]:
    """Every kind of failure that a server or a network in trouble shows, of so many requests each."""
    kinds = [Fault("status", share, status=500), Fault("status", share, status=503), Fault("reset", share)]
    return [*kinds, Fault("cut", share), Fault("cut-request", share, methods="PUT,POST")]


def test_pictures_have_the_patience_of_numbers(
    proxy: FaultProxy, tracking_server: str, experiment: str, tmp_path: Path
):
    """The server is away, and one request in eight fails besides."""
    ref = runs.open_run(experiment, "a", proxy.url, {}, {})
    said: list[str] = []
    with RunLogger(ref, home=str(tmp_path), tell=said.append, interval_s=0.05) as logger:
        proxy.faults = flaky(0.025)
        for step in range(1, 17):
            logger.metrics(step, {"loss": float(step)})
            logger.image("sample", np.full((4, 4, 3), step, np.uint8), step=step)
            if step == 5:
                proxy.shut()
                logger.flush()
            if step == 10:
                assert list(Outbox(str(tmp_path), ref.run_id).load()[1])  # they wait on the disk
                proxy.open()
        wait_until(lambda: not logger._left())
    proxy.faults = []
    assert pictures(tracking_server, ref.run_id) == sorted(f"sample {step}" for step in range(1, 17))
    assert thumbnails(tracking_server, ref.run_id) == 16
    assert steps(tracking_server, ref.run_id, "loss") == list(range(1, 17))
    assert any("all is kept and sent later" in line for line in said)
    assert "works again; what was kept is sent" in said[-1]
    assert not (tmp_path / "unsent" / ref.run_id).exists()
    assert LOST not in client(tracking_server).get_run(ref.run_id).data.tags


def test_what_a_killed_process_could_not_send_is_sent_by_the_next(
    proxy: FaultProxy, tracking_server: str, experiment: str, tmp_path: Path
):
    ref = runs.open_run(experiment, "a", proxy.url, {}, {})
    proxy.shut()
    script = (
        "import os, signal, numpy as np\n"
        "from pipeline.tracking.logger import RunLogger\n"
        "from pipeline.tracking.store import RunRef\n"
        f"logger = RunLogger(RunRef({ref.run_id!r}, {proxy.url!r}), home={str(tmp_path)!r}, interval_s=0.05)\n"
        "for step in (1, 2, 3):\n"
        "    logger.metrics(step, {'loss': float(step)})\n"
        "    logger.image('sample', np.zeros((4, 4), np.uint8), step=step)\n"
        "logger.tag('damaged', 'x')\n"
        "logger.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    proxy.open()
    with RunLogger(ref, home=str(tmp_path), interval_s=0.05) as logger:  # from the checkpoint of step 2
        for step in (3, 4):
            logger.metrics(step, {"loss": 10.0 + step})
            logger.image("sample", np.zeros((4, 4), np.uint8), step=step)
    api = client(tracking_server)
    assert [(m.step, m.value) for m in api.get_metric_history(ref.run_id, "loss")] == [(1, 1), (2, 2), (3, 3), (4, 14)]
    assert pictures(tracking_server, ref.run_id) == [f"sample {step}" for step in (1, 2, 3, 4)]
    assert api.get_run(ref.run_id).data.tags["damaged"] == "x"
    assert not (tmp_path / "unsent" / ref.run_id).exists()


def test_what_waits_at_the_end_is_said_and_sent_by_a_command(
    proxy: FaultProxy, tracking_server: str, experiment: str, tmp_path: Path
):
    ref = runs.open_run(experiment, "a", proxy.url, {}, {})
    proxy.shut()
    said: list[str] = []
    logger = RunLogger(ref, home=str(tmp_path), tell=said.append, interval_s=0.05)
    logger.metrics(1, {"loss": 1.0})
    logger.image("sample", np.zeros((4, 4), np.uint8), step=1)
    logger.close(limit_s=1)
    assert f"2 points and files of run {ref.run_id} wait in {tmp_path}/unsent/{ref.run_id}" in said[-1]
    runs.send_unsent(RunRef(ref.run_id, proxy.url), str(tmp_path / "elsewhere"), said.append)  # nothing waits there
    proxy.open()
    runs.send_unsent(ref, str(tmp_path), said.append)
    assert said[-1] == f"what waited in {tmp_path}/unsent/{ref.run_id} is sent"
    assert pictures(tracking_server, ref.run_id) == ["sample 1"]
    assert steps(tracking_server, ref.run_id, "loss") == [1]


def test_what_the_server_refuses_is_said_and_recorded(sqlite_store: str, experiment: str, tmp_path: Path):
    ref = runs.open_run(experiment, "a", sqlite_store, {}, {})
    said: list[str] = []
    with RunLogger(ref, home=str(tmp_path), tell=said.append, interval_s=0.05) as logger:
        logger.metrics(1, {"loss": 2.0, "wrong|name": 1.0, "psnr": 3.0})
        logger.metrics(2, {"loss": 1.0})
        logger.tag("right", "yes")
    assert any("refused 'wrong|name' of step 1, which is lost" in line for line in said), said
    run = client(sqlite_store).get_run(ref.run_id)
    assert run.data.tags[LOST].startswith("'wrong|name' of step 1: ")
    assert run.data.tags["right"] == "yes"
    assert run.data.metrics == {"loss": 1.0, "psnr": 3.0}


def wait_until(condition, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_no_secret_is_in_the_store(tmp_path: Path, empty_store: Path):
    # In a process of its own, as a user would have it: credentials in the environment and in the settings.
    database = tmp_path / "mlflow.db"
    database.write_bytes(empty_store.read_bytes())
    secrets = {"AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENG", "MLFLOW_TRACKING_PASSWORD": "correcthorse9"}
    script = (
        "import os\n"
        "from pipeline.tracking import runs\n"
        "from pipeline.tracking.logger import RunLogger\n"
        "data = {'shards': 'https://me:hunter22@host/shards', 'note': os.environ['AWS_SECRET_ACCESS_KEY']}\n"
        "argv = ['--token', os.environ['MLFLOW_TRACKING_PASSWORD']]\n"
        "params = {'data': data, 'db': {'password': 'letmein7'}, 'argv': argv}\n"
        "tags = {'url': 'https://b/k?X-Amz-Signature=abcdef0123&x=1', 'id': 'AKIAABCDEFGHIJKLMNOP'}\n"
        f"ref = runs.open_run('secrets', 'a', 'sqlite:///{database}', params, tags)\n"
        "with RunLogger(ref) as logger:\n"
        "    logger.tag('note', 'https://me:hunter22@host/shards')\n"
        "runs.log_input(ref, 'shards', 'd' * 64, 'https://me:hunter22@host/shards')\n"
        "runs.finish(ref, 'FINISHED')\n"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ | secrets, check=True, timeout=120)
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"https://***@host/shards" in written  # it was recorded
    for secret in (*secrets.values(), "hunter22", "letmein7", "abcdef0123", "AKIAABCDEFGHIJKLMNOP"):
        assert secret.encode() not in written, secret
