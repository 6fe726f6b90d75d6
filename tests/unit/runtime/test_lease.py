"""One writer per place, on a disk and on S3: of many that start at once, exactly one gets the lease."""

import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time

import boto3
import pytest

from kernels_bank.runtime import lease_store
from kernels_bank.runtime.errors import BadRequestError, JobFailedError
from kernels_bank.runtime.lease import ENTRY, only_writer, refuse_second_writer
from kernels_bank.runtime.process import is_gone, this_process
from tests.helpers.servers import s3_server, s3_variables


@pytest.fixture(scope="module")
def s3_place():
    """A bucket of a real S3 server over HTTP."""
    with s3_server() as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in s3_variables(endpoint).items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="leases")
        yield "s3://leases"


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path):
    return str(tmp_path) if request.param == "disk" else f"{request.getfixturevalue('s3_place')}/{tmp_path.name}"


def entry_of(place: str) -> dict:
    return lease_store.lease_store(f"{place}/{ENTRY}").read().content


def _write(place, ready):
    with only_writer(place, renew_s=0.1):
        ready.set()
        time.sleep(60)


@pytest.fixture
def other(place):
    """Another process that writes to the place."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_write, args=(place, ready), daemon=True)
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_second_writer_is_refused_with_the_first_ones_place(other, place):
    refused = pytest.raises(BadRequestError, match=f"process {other.pid} on .*since 20.* is at work on it")
    with refused, only_writer(place):
        pytest.fail("two writers at once")
    with pytest.raises(BadRequestError, match="is at work"):
        refuse_second_writer(place)
    assert entry_of(place)["pid"] == other.pid


def test_a_killed_writer_is_followed_at_once(other, place):
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    started = time.monotonic()
    with only_writer(place, renew_s=30.0):  # watching for life signs would take 90 s
        assert entry_of(place)["pid"] == os.getpid()
    assert time.monotonic() - started < 30


def test_a_process_id_that_was_given_away_again_is_another_process(place):
    dead = this_process() | {"started": "1", "token": "t"}
    assert is_gone(dead)
    assert not is_gone(this_process())
    assert is_gone(this_process() | {"where": "another boot"}) is None
    assert lease_store.lease_store(f"{place}/{ENTRY}").create(dead)
    with only_writer(place, renew_s=30.0):
        assert entry_of(place)["token"] != "t"


@pytest.mark.parametrize("left", [{"host": "elsewhere", "pid": 1, "token": "t"}, {}], ids=["elsewhere", "half written"])
def test_an_entry_that_cannot_be_judged_counts_while_it_changes(place, left):
    store = lease_store.lease_store(f"{place}/{ENTRY}")
    assert store.create(left)
    with only_writer(place, renew_s=0.1):
        assert entry_of(place)["pid"] == os.getpid()
    store.create(left)
    ended = threading.Event()

    def live() -> None:
        for count in range(1000):
            if ended.wait(0.02):
                return
            store.replace(store.read(), left | {"renewed": count})

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(BadRequestError, match="is at work"), only_writer(place, renew_s=0.5):
        pytest.fail("the other one was alive")
    ended.set()
    thread.join()


def race(place: str, starts: int) -> list[str]:
    """Start many writers at the same moment; return what became of each. Winners hold the place until all are done."""
    barrier, done, results = threading.Barrier(starts), threading.Barrier(starts), []

    def start() -> None:
        barrier.wait(60)
        try:
            with only_writer(place, renew_s=30.0):
                results.append("in")
                done.wait(60)
        except BadRequestError as error:
            results.append(str(error))
            done.wait(60)

    threads = [threading.Thread(target=start) for _ in range(starts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("before", ["nothing", "a dead writer's entry"])
def test_of_many_starts_exactly_one_gets_in(place, before):
    """Ten races of ten: 100 starts."""
    store = lease_store.lease_store(f"{place}/{ENTRY}")
    for _ in range(10):
        if before != "nothing":
            assert store.create(this_process() | {"started": "1", "token": "dead"})
        results = race(place, 10)
        assert len(results) == 10
        assert results.count("in") == 1
        assert store.read() is None


def test_a_writer_that_stood_still_and_was_followed_writes_nothing_more(place):
    store = lease_store.lease_store(f"{place}/{ENTRY}")
    with only_writer(place, renew_s=30.0) as lease:
        lease.check()
        assert store.replace(store.read(), {"pid": 7, "host": "elsewhere", "token": "other"})
        with pytest.raises(JobFailedError, match="taken over by process 7 on elsewhere"):
            lease.check()
    assert store.read().content["token"] == "other"  # what is another's stays


def test_only_what_was_seen_is_replaced_or_removed(place):
    store = lease_store.lease_store(f"{place}/{ENTRY}")
    assert store.create({"a": 1})
    assert not store.create({"a": 2})
    seen = store.read()
    assert store.replace(seen, {"a": 3})
    assert not store.replace(seen, {"a": 4})
    store.remove(seen)
    assert store.read().content == {"a": 3}
    store.remove(store.read())
    assert store.read() is None


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    store = lease_store.lease_store(str(tmp_path / ENTRY))
    with monkeypatch.context() as changed:
        changed.setattr(lease_store, "_encoded", lambda content: bytes(1 << 20))
        changed.setattr(sys, "dont_write_bytecode", True)  # cut off, it breaks every later import
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # past it writes fail, with SIGXFSZ ignored
        try:
            with pytest.raises(OSError, match="File too large"):
                store.create({})
            assert not list(tmp_path.iterdir())
            (tmp_path / ENTRY).write_bytes(b"{}")
            with pytest.raises(OSError, match="File too large"):
                store.replace(store.read(), {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == [ENTRY]
    assert (tmp_path / ENTRY).read_bytes() == b"{}"


def test_nothing_is_left_after_the_work(place, capsys):
    with pytest.raises(RuntimeError, match="broke"), only_writer(place):
        raise RuntimeError("broke")
    assert lease_store.lease_store(f"{place}/{ENTRY}").read() is None
    assert capsys.readouterr().err == ""


def test_a_store_that_cannot_promise_says_so(s3_place, monkeypatch, capsys):
    monkeypatch.setattr(lease_store, "_is_refusal", lambda error: False)
    lease_store._keeps_conditions.cache_clear()
    with only_writer(f"{s3_place}/weak"):
        assert json.loads(boto3.client("s3").get_object(Bucket="leases", Key=f"weak/{ENTRY}")["Body"].read())["pid"]
    assert "knows no conditional writes" in capsys.readouterr().err
    lease_store._keeps_conditions.cache_clear()
