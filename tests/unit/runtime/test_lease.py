"""Two drivers of one folder are kept apart; one that died is not waited for."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from kernels_bank.runtime.driver import ENTRY, only_driver
from kernels_bank.runtime.errors import BadRequestError


def _drive(home, ready):
    with only_driver(home, renew_s=0.1):
        ready.set()
        time.sleep(60)


@pytest.fixture
def other(tmp_path):
    """Another process that drives the run in tmp_path."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_drive, args=(str(tmp_path), ready), daemon=True)
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_second_driver_is_refused_with_the_first_ones_place(other, tmp_path):
    with (
        pytest.raises(BadRequestError, match=f"process {other.pid} on .* is at work on it"),
        only_driver(str(tmp_path)),
    ):
        pytest.fail("two drivers at once")
    assert json.loads((tmp_path / ENTRY).read_text())["pid"] == other.pid


def test_a_killed_driver_is_followed_at_once(other, tmp_path):
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    started = time.monotonic()
    with only_driver(str(tmp_path), renew_s=30.0):  # watching for life signs would take 90 s
        assert json.loads((tmp_path / ENTRY).read_text())["pid"] == os.getpid()
    assert time.monotonic() - started < 30


def test_an_entry_of_another_machine_counts_while_it_changes(tmp_path):
    entry = {"host": "elsewhere", "pid": 1, "token": "t", "renewed": 7}
    (tmp_path / ENTRY).write_text(json.dumps(entry))
    with only_driver(str(tmp_path), renew_s=0.1):
        assert json.loads((tmp_path / ENTRY).read_text())["pid"] == os.getpid()


def test_nothing_is_left_after_the_run(tmp_path):
    with pytest.raises(RuntimeError, match="broke"), only_driver(str(tmp_path)):
        raise RuntimeError("broke")
    assert not (tmp_path / ENTRY).exists()
