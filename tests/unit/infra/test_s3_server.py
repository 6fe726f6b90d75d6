"""The S3 test server says in a line what it cannot use."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

INFRA = Path(__file__).parents[3] / "infra"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the server, with its own folder on the path and nothing served."""
    monkeypatch.syspath_prepend(str(INFRA))
    module = importlib.import_module("s3_server")
    monkeypatch.setattr(module, "run_simple", lambda *_, **__: pytest.fail("was started"))
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    return module


def a_file(folder: Path) -> None:
    folder.write_text("")


def no_bucket(folder: Path) -> None:
    (folder / "b").mkdir(parents=True)


def no_object(folder: Path) -> None:
    (folder / "bucket").mkdir(parents=True)
    (folder / "bucket" / "a.object").write_text("junk")


def no_key(folder: Path) -> None:
    (folder / "bucket").mkdir(parents=True)
    (folder / "bucket" / "a.object").write_text("{}\n")


@pytest.mark.parametrize(
    ("port", "prepare", "told"),
    [
        ("99999", no_bucket, "--port 99999: a port is a number"),
        ("-1", no_bucket, "--port -1: a port is a number"),
        ("9000", a_file, "kept: File exists"),
        ("9000", no_bucket, "kept: not of this server"),
        ("9000", no_object, "kept: not of this server"),
        ("9000", no_key, "kept: not of this server"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: ModuleType,
    port: str,
    prepare: Callable[[Path], None],
    told: str,
):
    prepare(tmp_path / "kept")
    monkeypatch.setattr("sys.argv", ["s3_server.py", "--port", port, "--folder", str(tmp_path / "kept")])
    with pytest.raises(SystemExit) as ended:
        server.main()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
