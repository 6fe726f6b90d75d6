"""Real jobs with a hard password in the tracking URI: it works, and nothing that is written anywhere holds it."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from tests.flow.training_runs import REPO, command_of, environment, small_run
from tests.helpers.servers import free_port, mlflow_server

pytestmark = pytest.mark.flow
PASSWORD = "p@ss/w:o#r?d% \"'&=+\\<x>"  # in ASCII, as MLflow's server wants it
# As a program may write it; each is searched for in all bytes.
FORMS = {
    PASSWORD,
    quote(PASSWORD, safe=""),
    quote(PASSWORD),
    quote_plus(PASSWORD),
    json.dumps(PASSWORD)[1:-1],
    json.dumps(PASSWORD, ensure_ascii=False)[1:-1],
    repr(PASSWORD)[1:-1],
    base64.b64encode(f"admin:{PASSWORD}".encode()).decode(),
    # Of a password that is cut in pieces by a parser that takes its marks for the URI's.
    "w:o#r?d",
    "o%23r%3Fd",
}


@pytest.fixture(scope="module")
def login_server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """`host:port` of a tracking server that asks for a login, and the folder with all that it writes."""
    folder = tmp_path_factory.mktemp("login-server")
    variables = {"MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD, "MLFLOW_FLASK_SERVER_SECRET_KEY": "0123456789abcdef"}
    backend = f"sqlite:///{shutil.copy(empty_store, folder / 'server.db')}"
    options = ["--app-name", "basic-auth"]
    with mlflow_server(backend, str(folder / "artifacts"), folder, variables, options) as uri:
        yield uri.removeprefix("http://"), folder


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its sessions; the paths of its sockets must be short."""
    with tempfile.TemporaryDirectory(prefix="bsr-", dir="/tmp") as folder:
        yield Path(folder)


def holding_a_secret(*folders: Path) -> list[str]:
    """The files with any form of the password."""
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    assert files
    wanted = [form.encode() for form in FORMS]
    return [str(file) for file in files if any(form in file.read_bytes() for form in wanted)]


def run_job(arguments: list[str], uri: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments] if arguments[0].startswith("jobs/") else arguments
    done = subprocess.run(
        command,
        cwd=REPO,
        env=environment(MLFLOW_TRACKING_URI=uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", **variables),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    said = done.stdout + done.stderr
    assert not [form for form in FORMS if form in said], said
    assert "Traceback" not in said, said
    return done


def test_a_run_behind_a_login_leaves_its_password_nowhere(
    login_server: tuple[str, Path], shards: str, bank: str, tmp_path: Path, ray_folder: Path
):
    place, server = login_server
    uri = f"http://admin:{quote(PASSWORD, safe='')}@{place}"
    config = small_run(shards, bank, str(tmp_path / "runs"), steps=4, workers=1, image_every=2, checkpoint_every=2)
    done = run_job(command_of(config, tmp_path), uri, RAY_TMPDIR=str(ray_folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"tracking  http://***@{place}" in done.stdout
    listed = run_job(["jobs/registry.py", "list", "--json"], uri)
    assert listed.returncode == 0, listed.stderr
    assert [model["name"] for model in json.loads(listed.stdout)] == ["small-x2"]
    assert list(ray_folder.rglob("*.log"))  # Ray was there
    assert holding_a_secret(tmp_path, ray_folder, server) == []


@pytest.mark.parametrize("encoded", [True, False], ids=["encoded", "raw"])
def test_a_server_that_is_not_reached_is_named_without_the_login(login_server: tuple[str, Path], encoded: bool):
    place, _ = login_server
    password = quote(PASSWORD, safe="") if encoded else PASSWORD
    closed = f"127.0.0.1:{free_port()}"
    for login, where, message in (
        (f"admin:{password}", closed, "does not answer"),
        (f"nobody:{password}", place, "login" if encoded else "percent-encode"),
    ):
        done = run_job(["jobs/registry.py", "list"], f"http://{login}@{where}")
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert f"http://***@{where}" in line
        assert (message if encoded else "percent-encode") in line
