"""Uploads of checkpoints wait for unavailable storage but not for a full disk, and never lose the snapshot."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import ArtefactError, JobFailedError
from pipeline.training import commit
from pipeline.training.commit import COPY, SNAPSHOT, KeepSnapshot, mend_snapshot, newest, usable_step


def snapshot(step: int) -> str:
    return json.dumps({"latest_checkpoint_result": {"checkpoint_dir_name": f"step-{step:08d}", "metrics": {}}})


def commit_step(folder: Path, step: int) -> None:
    """What Ray Train does, then what we do after it."""
    (folder / SNAPSHOT).write_text(snapshot(step))
    KeepSnapshot(str(folder)).after_report(None, [], MagicMock())


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_snapshot_cut_anywhere_is_the_one_before(tmp_path: Path, cut: int):
    commit_step(tmp_path, 8)
    (tmp_path / SNAPSHOT).write_text(snapshot(12)[:cut])
    with pytest.raises(ArtefactError, match=COPY):  # what is looked at is the copy, which lists no checkpoint here
        usable_step(str(tmp_path), mend=False)
    assert (tmp_path / SNAPSHOT).read_text() == snapshot(12)[:cut]
    mend_snapshot(str(tmp_path))
    assert (tmp_path / SNAPSHOT).read_text() == snapshot(8)
    assert newest(str(tmp_path)) == f"{tmp_path}/step-00000008"


def test_a_snapshot_that_is_gone_is_its_copy(tmp_path: Path):
    """Without it the run would begin anew beside its checkpoints."""
    commit_step(tmp_path, 8)
    (tmp_path / SNAPSHOT).unlink()
    mend_snapshot(str(tmp_path))
    assert (tmp_path / SNAPSHOT).read_text() == snapshot(8)
    assert newest(str(tmp_path)) == f"{tmp_path}/step-00000008"


def test_a_whole_snapshot_stays(tmp_path: Path):
    commit_step(tmp_path, 8)
    (tmp_path / SNAPSHOT).write_text(snapshot(12))
    mend_snapshot(str(tmp_path))
    assert (tmp_path / SNAPSHOT).read_text() == snapshot(12)


def test_a_first_snapshot_that_was_cut_is_no_checkpoint(tmp_path: Path):
    mend_snapshot(str(tmp_path))  # a new run
    (tmp_path / SNAPSHOT).write_text(snapshot(4)[:20])
    mend_snapshot(str(tmp_path))
    assert not (tmp_path / SNAPSHOT).exists()
    assert newest(str(tmp_path)) == ""


def test_a_snapshot_that_cannot_be_read_is_not_taken_for_a_cut_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commit_step(tmp_path, 8)
    (tmp_path / SNAPSHOT).write_text(snapshot(12))

    def away(uri: str) -> bytes:
        raise ArtefactError(f"{uri}: cannot be read")

    monkeypatch.setattr(storage, "read_bytes", away)
    with pytest.raises(ArtefactError, match="cannot be read"):
        mend_snapshot(str(tmp_path))
    assert (tmp_path / SNAPSHOT).read_text() == snapshot(12)


def test_on_s3_no_request_is_made_for_a_copy(monkeypatch: pytest.MonkeyPatch):
    """S3 replaces a file whole; a server that is away would hold up the controller, and with it the run."""
    kept = KeepSnapshot("s3://bucket/run")
    asked: list[str] = []
    for request in ("exists", "read_bytes", "write_bytes"):
        monkeypatch.setattr(storage, request, lambda uri, *_: asked.append(uri))
    kept.after_report(None, [], MagicMock())
    assert asked == []


@pytest.fixture
def channel() -> MagicMock:
    return MagicMock()


def storage_that(monkeypatch: pytest.MonkeyPatch, answer: Any) -> MagicMock:
    where = MagicMock(experiment_fs_path="bucket/run")
    where.persist_current_checkpoint.side_effect = answer
    context = SimpleNamespace(get_storage=lambda: where)
    monkeypatch.setattr(commit.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(commit.ray, "get", lambda answer: answer)
    return where


def test_storage_that_takes_long_is_told_once(monkeypatch: pytest.MonkeyPatch, channel: MagicMock):
    told = threading.Event()
    channel.say.remote.side_effect = lambda line: told.set()
    storage_that(monkeypatch, lambda local, name: f"{name} {told.wait(timeout=20)}")
    monkeypatch.setattr(commit, "_SAY_AFTER_S", 0.0)
    assert commit._upload("local", "step-00000004", "s3://bucket/run", channel) == "step-00000004 True"
    (said,) = [call.args[0] for call in channel.say.remote.call_args_list]
    assert said.startswith("checkpoint step-00000004 waits for its storage")


def test_storage_that_answers_is_not_told(monkeypatch: pytest.MonkeyPatch, channel: MagicMock):
    before = threading.active_count()
    storage_that(monkeypatch, ["the checkpoint"])
    assert commit._upload("local", "step-00000004", "s3://bucket/run", channel) == "the checkpoint"
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(timeout=20)
    assert threading.active_count() == before
    channel.say.remote.assert_not_called()


def test_storage_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, channel: MagicMock):
    storage_that(monkeypatch, [OSError(errno.ENOSPC, "No space left on device")])
    with pytest.raises(JobFailedError, match=r"^checkpoint step-00000004 cannot be written to bucket/run: .*No space"):
        commit._upload("local", "step-00000004", "s3://bucket/run", channel)
    reason, _ = channel.report_fatal.remote.call_args.args
    assert reason.startswith("checkpoint step-00000004 cannot be written")


def test_a_run_that_was_deleted_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channel: MagicMock):
    """Ray Train makes whatever folder it writes to."""
    where = storage_that(monkeypatch, ["the checkpoint"])
    where.experiment_fs_path = str(tmp_path / "small" / "checkpoints")
    with pytest.raises(JobFailedError, match=f"was deleted while this command wrote to it: '{tmp_path}/small'"):
        commit._upload("local", "step-00000004", str(tmp_path / "small"), channel)
    where.persist_current_checkpoint.assert_not_called()
    assert not list(tmp_path.iterdir())
