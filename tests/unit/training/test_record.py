"""The folder of a run: what an earlier run wrote is put aside whole, what others wrote stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from kernels_bank.runtime.lease import only_writer
from kernels_bank.runtime.output import MARK, own_output
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.training.record import KIND, RECORD, earlier, names_without_mark, put_aside

CONFIG = RunConfig(name="run", data=DataConfig(shards="s", bank="b"), train=TrainConfig(steps=1))
OURS = {"config": CONFIG.model_dump(mode="json"), "digests": {}, "run_id": "a1"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with the record of a run, a checkpoint, and a file of the user's."""
    for name in ("checkpoints/step-00000001/state.json", "model/model.json", "notes.txt"):
        storage.write_bytes(tmp_path / "run" / name, name.encode())
    storage.write_json(tmp_path / "run" / RECORD, OURS)
    return tmp_path / "run"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_put_aside_and_what_is_not_its_own_stays(home: Path, capsys: pytest.CaptureFixture):
    whole = {RECORD, "model/model.json", "checkpoints/step-00000001/state.json"}
    for number, written in ((1, whole), (2, {RECORD})):
        with own_output(str(home), KIND, names_without_mark(str(home))):
            put_aside(str(home))
        assert f"the earlier run is kept in {home}.{number}" in capsys.readouterr().err
        assert files(home) == {MARK, "notes.txt"}
        assert files(home.with_name(f"run.{number}")) == written
        storage.write_json(home / RECORD, OURS)


def test_what_a_kill_left_of_it_is_put_aside_by_the_next(home: Path):
    (home / RECORD).unlink()  # as of a run that was killed before it wrote the record
    with own_output(str(home), KIND, ()):
        put_aside(str(home))
    assert files(home) == {MARK, "notes.txt"}


@pytest.mark.parametrize("content", [{"program": "another"}, [], OURS | {"run_id": "../x"}])
def test_a_record_of_another_program_protects_its_folder(home: Path, content: object):
    (home / RECORD).write_text(json.dumps(content))
    before = files(home)
    refused = pytest.raises(BadRequestError, match=f"holds {RECORD}, which this command did not make")
    with refused, own_output(str(home), KIND, names_without_mark(str(home))):
        pytest.fail("not ours")
    assert files(home) == before
    assert not home.with_name("run.1").exists()


@pytest.mark.parametrize("content", ["", '{"config": ', "[]", "null"])
def test_a_damaged_record_says_how_to_go_on(home: Path, content: str):
    (home / RECORD).write_text(content)
    with pytest.raises(ArtefactError, match=r"run\.json: .*; start afresh with --resume never$"):
        earlier(str(home), CONFIG, {}, changed=False)


def test_a_run_that_is_under_way_is_not_put_aside(home: Path):
    refused = pytest.raises(BadRequestError, match="is at work on it")
    with only_writer(str(home)), refused, own_output(str(home), KIND, names_without_mark(str(home))):
        pytest.fail("two drivers")


@pytest.mark.parametrize("change", [{"steps": 7}, {"workers": 2}, {"log_every": 1}, {"start_from": "elsewhere"}])
def test_what_does_not_change_what_is_learned_may_change(home: Path, change: dict):
    now = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update=change), "output": "s3://elsewhere"})
    assert earlier(str(home), now, {}, changed=False)["run_id"] == "a1"


@pytest.mark.parametrize("change", [{"learning_rate": 1.0}, {"batch_size": 2}, {"deterministic": True}])
def test_what_changes_what_is_learned_is_refused_by_its_name(home: Path, change: dict):
    now = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update=change)})
    (name,) = change
    with pytest.raises(BadRequestError, match=rf"with other settings \(train\.{name}: "):
        earlier(str(home), now, {}, changed=False)
    assert earlier(str(home), now, {}, changed=True)["run_id"] == "a1"
