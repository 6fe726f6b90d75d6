"""Which tracking URIs are taken, and that they mean the same from any working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels_bank.runtime.errors import BadRequestError
from pipeline.tracking.registry import store_uri
from pipeline.tracking.runs import flatten
from pipeline.tracking.store import RunRef, checked_uri, prepare_store, tracking_uri


@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000", "https://mlflow.example.org/path"])
def test_servers_are_taken_as_they_are(uri: str):
    assert checked_uri(uri) == checked_uri(f"{uri}/") == uri


def test_relative_databases_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert checked_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri("runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://", "no host name"),
        ("sqlite:///", "use http"),
        ("runs", "use http"),
        ("file:///runs", "use http"),
        ("sqlite:////tmp/a?b/mlflow.db", r"path with '\?'"),
        ("postgresql://me:hunter22@db/mlflow", r"postgresql://\*\*\*@db/mlflow: use http"),
    ],
)
def test_other_uris_are_refused(uri: str, message: str):
    with pytest.raises(BadRequestError, match=message) as caught:
        checked_uri(uri)
    assert "hunter22" not in str(caught.value)


def test_the_variable_wins_over_the_output(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri("runs") == "http://tracking:5000"


def test_runs_on_an_object_store_need_a_server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(BadRequestError, match="set MLFLOW_TRACKING_URI"):
        tracking_uri("s3://bucket/runs")


def test_lookups_do_not_make_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequestError, match=r"no registry: .*runs/mlflow\.db is not there"):
        store_uri()
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path):
    file = tmp_path / "mlflow.db"
    file.write_text("notes")
    with pytest.raises(BadRequestError, match="not an SQLite database"):
        prepare_store(f"sqlite:///{file}")
    assert file.read_text() == "notes"


def test_a_run_reference_does_not_show_its_password():
    ref = RunRef("abc", "http://me:hunter22@host:5000")
    assert "hunter22" not in repr(ref)
    assert ref.shown == "http://***@host:5000"


def test_flatten_gives_dotted_paths_and_texts():
    nested = {
        "name": "a",
        "train": {"steps": 5, "sigma": (0.0, 0.5), "deep": {"flag": True, "none": None}},
        "empty": {},
    }
    assert dict(flatten(nested)) == {
        "name": "a",
        "train.steps": "5",
        "train.sigma": "[0.0, 0.5]",
        "train.deep.flag": "true",
        "train.deep.none": "null",
    }
