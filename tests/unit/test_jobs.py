"""One command for all jobs: each is found, parsed and ended as its own file does it."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
JOBS = sorted(path.stem for path in (REPO / "jobs").glob("[a-z]*.py"))


def blind_sr(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "jobs", *arguments], capture_output=True, text=True, cwd=REPO)


def test_without_a_job_all_are_listed_with_a_sentence():
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in blind_sr().stdout.splitlines()[2:]}
    assert sorted(listed) == [job.replace("_", "-") for job in JOBS]
    assert all(sentence.endswith((".", "?")) for sentence in listed.values())


@pytest.mark.parametrize("spelling", ["shard-images", "shard_images"])
def test_arguments_and_exit_status_are_the_jobs_own(spelling: str):
    mistake = ("--shard-mib", "many")
    ours = blind_sr(spelling, *mistake)
    alone = subprocess.run([sys.executable, "jobs/shard_images.py", *mistake], capture_output=True, text=True, cwd=REPO)
    assert ours.returncode == alone.returncode == 2
    assert ours.stderr == alone.stderr
    assert "shard-mib" in ours.stderr.replace("_", "-")


def test_an_unknown_job_is_one_line():
    wrong = blind_sr("nope")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: blind-sr nope: no such job; there is build-kernel-bank, ")
    assert wrong.stderr.count("\n") == 1


def test_ctrl_c_while_a_job_is_imported_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def imported(*_: str, **__: object) -> None:
        raise KeyboardInterrupt

    entry = importlib.import_module("jobs.__main__")
    monkeypatch.setattr(sys, "argv", ["blind-sr", "restore"])
    monkeypatch.setattr(entry.runpy, "run_module", imported)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "interrupted\n")
