"""Which tracking URIs are taken, and that they mean the same from any working directory."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.redact import MASK
from pipeline.registry.lease import _passes
from pipeline.registry.versions import find, store_uri
from pipeline.tracking import store
from pipeline.tracking.logger import _line
from pipeline.tracking.runs import flatten
from pipeline.tracking.server import without_login
from pipeline.tracking.sqlite import prepare_store
from pipeline.tracking.store import RunRef, checked_uri, clause, is_silence, plain_errors, reason_of, tracking_uri


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
        ("http://127.0.0.1:5000/#/experiments/1", "a browser's address of a page"),
        ("http://127.0.0.1:5000/?x", "a browser's address of a page"),
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


@pytest.mark.parametrize("revision", ["abc123", "867495a8f9d4"])
def test_a_store_of_another_version_of_mlflow_is_left_alone(tmp_path: Path, revision: str):
    file = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES (?)", [revision])
        database.commit()
    before = file.read_bytes()
    if revision == "abc123":
        with pytest.raises(BadRequestError, match=r"made by another version of MLflow .*abc123.*use that version"):
            prepare_store(f"sqlite:///{file}")
    else:  # of MLflow 1.0, which every later one knows
        prepare_store(f"sqlite:///{file}")
    assert file.read_bytes() == before


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


@settings(max_examples=300)
@given(st.text(max_size=20) | st.text("a'\"\\%_` ;-/*\n", max_size=8))
def test_mlflow_reads_a_filter_as_it_was_meant(value: str):
    from mlflow.utils.search_utils import SearchModelVersionUtils, SearchUtils

    parsed = SearchModelVersionUtils.parse_search_filter(clause("name", value))
    parsed += SearchUtils.parse_search_filter(clause("tags.`blindsr.run_key`", value))
    assert len(parsed) == 2
    for comparison in parsed:
        if comparison["comparator"] == "=":
            assert comparison["value"] == value
        else:
            assert comparison["comparator"] == "LIKE"
            assert len(comparison["value"]) == len(value)
            pairs = zip(comparison["value"], value, strict=True)
            assert all(wild == mine or (wild == "_" and mine in "'\\") for wild, mine in pairs)


HARD = "p@ss/w:o#r?d% ü&=+\"'[]"


def test_a_login_is_taken_out_of_the_uri_before_mlflow_sees_it(monkeypatch: pytest.MonkeyPatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that it is put back
    uri = checked_uri(f"https://{quote('a user', safe='')}:{quote(HARD, safe='')}@[::1]:5000/base/")
    assert without_login(uri) == "https://[::1]:5000/base"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("a user", HARD)
    assert RunRef("1", uri).shown == f"https://{MASK}@[::1]:5000/base"
    assert without_login("http://h:5000") == "http://h:5000"


@pytest.mark.parametrize(
    "password", ["p/assword", "p?assword", "p#assword", "p assword", "p[assword", "1/assword", "p@s/s"]
)
def test_a_password_that_is_not_encoded_is_refused_without_being_shown(password: str):
    with pytest.raises(BadRequestError, match="percent-encode") as caught:
        checked_uri(f"http://me:{password}@host:5000")
    assert password not in str(caught.value)
    assert "assword" not in str(caught.value).replace("password", "").replace("PASSWORD", "")


def test_an_at_in_a_password_means_only_that(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    assert without_login(checked_uri("http://me:p@ss@host:5000")) == "http://host:5000"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "p@ss"


def _of_mlflow(statements: str) -> MlflowException:
    """What MLflow raises when SQLite refuses the last of the statements."""
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as database:
        *before, last = statements.split("; ")
        for statement in before:
            database.execute(sqlalchemy.text(statement))
        with pytest.raises(sqlalchemy.exc.OperationalError) as found:
            database.execute(sqlalchemy.text(last))
    error = MlflowException(message=found.value)
    error.__cause__ = found.value
    return error


@pytest.mark.parametrize(
    ("statements", "number"),
    [
        ("PRAGMA max_page_count = 2; CREATE TABLE a (x); INSERT INTO a VALUES (zeroblob(100000))", errno.ENOSPC),
        ("PRAGMA query_only = ON; CREATE TABLE a (x)", errno.EROFS),
    ],
)
def test_what_the_disk_refuses_to_sqlite_is_the_systems_error(statements: str, number: int):
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as found, plain_errors("sqlite:////a/b.db", "x"):
        raise _of_mlflow(statements)
    assert (found.value.errno, found.value.filename) == (number, "/a/b.db")


def test_other_errors_of_a_database_are_its_own_words_in_a_line():
    error = _of_mlflow("SELECT * FROM absent")
    assert reason_of(error) == "no such table: absent"
    shown = r"^cannot do it \(sqlite:////a/b.db\): no such table: absent$"
    with pytest.raises(BadRequestError, match=shown), plain_errors("sqlite:////a/b.db", "cannot do it"):
        raise error


def test_a_server_that_answers_with_errors_is_not_called_silent():
    found = "HTTPConnectionPool(host='h', port=5000): Max retries exceeded with url: /x (Caused by ResponseError("
    error = MlflowException(
        f"API request to http://h:5000/x failed with exception {found}'too many 503 error responses'))"
    )
    shown = "^cannot do it: the tracking server http://h:5000 answers with status 503 each time; look at its log$"
    with pytest.raises(BadRequestError, match=shown), plain_errors("http://h:5000", "cannot do it"):
        raise error
    assert _line(error) == "it answers with status 503 each time"
    assert not is_silence(error)


def test_a_version_that_no_store_can_number_is_refused_before_it_is_asked():
    with pytest.raises(BadRequestError, match=r"': no version has a number of 20 digits$"):
        find("m/99999999999999999999", "http://127.0.0.1:9")


def test_a_database_that_another_process_holds_is_a_line_at_its_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "m.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as held:
        held.execute("CREATE TABLE a (x)")
        held.execute("BEGIN EXCLUSIVE")
        engine = sqlalchemy.create_engine(f"sqlite:///{path}", connect_args={"timeout": 0})

        def opened(**_: str) -> None:
            engine.connect().execute(sqlalchemy.text("SELECT * FROM a"))

        monkeypatch.setattr("mlflow.MlflowClient", opened)
        monkeypatch.setattr(store, "prepare_store", lambda _: None)
        shown = "database is locked; another process holds it, try again when that has ended$"
        with pytest.raises(BadRequestError, match=rf"^cannot open the store \(sqlite:///{path}\): {shown}"):
            store.client(f"sqlite:///{path}")
    engine.dispose()


@pytest.mark.parametrize(("statements", "passes"), [("PRAGMA query_only = ON; CREATE TABLE a (x)", False), ("x", True)])
def test_a_lock_is_not_waited_for_where_the_disk_refuses_to_write_it(statements: str, passes: bool):
    error = _of_mlflow(statements)
    error.error_code = "TEMPORARILY_UNAVAILABLE"  # as MLflow calls both
    assert _passes(error) is passes


def test_a_database_of_another_program_gets_no_tables(tmp_path: Path):
    path = tmp_path / "places.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as theirs:
        theirs.execute("CREATE TABLE bookmarks (x)")
        theirs.commit()
    before = path.read_bytes()
    with pytest.raises(
        BadRequestError, match=r"of another program \(it has a table 'bookmarks'\); nothing was touched"
    ):
        prepare_store(f"sqlite:///{path}")
    assert path.read_bytes() == before
