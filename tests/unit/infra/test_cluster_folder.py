"""The launcher deletes the folder of a cluster that it made, and no other; what it cannot use is a line."""

import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).parents[3] / "infra" / "local_cluster.py"


@pytest.mark.parametrize("theirs", ["thesis.tex", "settings.json"])
@pytest.mark.parametrize("command", ["down", "up"])
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, command: str, theirs: str):
    (tmp_path / theirs).write_text(json.dumps({"theme": "dark"}))
    done = subprocess.run(
        [sys.executable, str(LAUNCHER), "--folder", str(tmp_path), command], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert f"holds {theirs} and is no cluster's folder; nothing was touched" in done.stderr
    assert json.loads((tmp_path / theirs).read_text()) == {"theme": "dark"}


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(LAUNCHER), *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"theme": "dark"})])
@pytest.mark.parametrize("command", ["status", "add-node"])
def test_settings_that_are_no_clusters_are_a_line(tmp_path: Path, command: str, text: str):
    (tmp_path / "settings.json").write_text(text)
    done = launch("--folder", str(tmp_path), command)
    said = f"error: {tmp_path}/settings.json is damaged or not a cluster's; give another --folder\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.mark.parametrize(
    ("ports", "said"),
    [
        (("--ray-port", "70000", "--s3-port=0"), "--ray-port 70000, --s3-port 0: a port is a number from 1 to 65535"),
        (("--ray-port", "5000"), "--ray-port 5000, --mlflow-port 5000: each server needs a port of its own"),
    ],
)
def test_ports_that_cannot_be_are_refused_before_anything_starts(tmp_path: Path, ports: tuple[str, ...], said: str):
    done = launch("--folder", str(tmp_path / "f"), "up", *ports)
    assert (done.returncode, done.stderr) == (2, f"error: {said}\n")
    assert not (tmp_path / "f").exists()


def test_a_file_is_no_folder_of_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.syspath_prepend(LAUNCHER.parent)
    launcher = importlib.import_module("local_cluster")
    monkeypatch.setattr(launcher, "refuse_busy_ports", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["local_cluster.py", "--folder", str(tmp_path / "file"), "up"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            launcher.main()
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler  # SIGTERM cleans up as Ctrl-C does
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/file: Not a directory; give another --folder\n"


def test_a_user_without_a_name_has_a_folder_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(LAUNCHER.parent)
    launcher = importlib.import_module("local_cluster")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 1_000_730_000)
    assert launcher.user_name() == "1000730000"


def test_a_health_check_says_no_login():
    url = "http://user:secret@127.0.0.1/health"
    done = subprocess.run(
        [sys.executable, str(LAUNCHER.with_name("healthcheck.py")), url], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "a URL with a login; write http://host:port/path, no login is sent\n"


@pytest.mark.parametrize("url", ["localhost", "http://a..b/"])
def test_a_health_check_of_no_url_is_a_line(url: str):
    command = [sys.executable, str(LAUNCHER.with_name("healthcheck.py")), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{url}: ")
    assert done.stderr.count("\n") == 1
