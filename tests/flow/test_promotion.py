"""Promotion on real stores: a gate, one at a time, with a way back; a dead process does not stop the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from pipeline.registry import fetch, versions
from pipeline.registry.lease import exclusive
from pipeline.registry.promotion import history, promote, rollback
from pipeline.registry.retention import delete_spare, spare
from pipeline.registry.versions import LEASE
from pipeline.tracking.store import client

pytestmark = pytest.mark.flow
KEY = "psnr.float.x2.blind"


def champion(name: str, store: str) -> int | None:
    return versions.aliases_of(name, store).get("champion")


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run `work(0)`, `work(1)`, ... at once; the first error is raised."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_the_gate_and_the_way_back(store: str, model_name: str, add_version: Callable[..., int]):
    one = add_version(store, 1, {KEY: 30.0})
    worse, unknown = add_version(store, 2, {KEY: 29.0}), add_version(store, 3)
    assert promote(store, model_name, one).previous is None
    assert promote(store, model_name, one) is None  # it is already

    with pytest.raises(BadRequestError, match=rf"{KEY} falls from 30\.00 to 29\.00 dB.*--force"):
        promote(store, model_name, worse)
    with pytest.raises(BadRequestError, match=r"30\.00 dB and not evaluated for the candidate"):
        promote(store, model_name, unknown)
    with pytest.raises(BadRequestError, match="--force needs a reason"):
        promote(store, model_name, worse, force=" ")
    assert champion(model_name, store) == one

    assert promote(store, model_name, worse, tolerance=1.5).objections == ()
    assert rollback(store, model_name).version == one
    promote(store, model_name, worse, force="sharper, see ticket 7; token=https://me:hunter22@host/")
    assert champion(model_name, store) == worse

    stored = history(versions.list_versions(model_name, store), "champion")
    assert [(m.action, m.version, m.previous) for m in stored] == [
        ("promote", one, None),
        ("promote", worse, one),
        ("rollback", one, worse),
        ("promote", worse, one),
    ]
    assert stored[-1].objections == (f"{KEY} falls from 30.00 to 29.00 dB",)
    assert stored[-1].reason == "sharper, see ticket 7; token=***"
    assert rollback(store, model_name).version == champion(model_name, store) == one
    with pytest.raises(BadRequestError, match="no version is recorded to have had the alias 'champion' before"):
        rollback(store, model_name)


def test_a_candidate_whose_files_were_changed_is_not_promoted(
    sqlite_store: str, model_name: str, add_version: Callable[..., int], tmp_path: Path
):
    version = add_version(sqlite_store, 1)
    (weights,) = tmp_path.glob("mlartifacts/**/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    with pytest.raises(ArtefactError, match=r"weights\.safetensors: sha256"):
        promote(sqlite_store, model_name, version)
    assert champion(model_name, sqlite_store) is None


def test_promotions_at_once_follow_one_another(store: str, model_name: str, add_version: Callable[..., int]):
    added = [add_version(store, number, {KEY: 30.0}) for number in range(4)]
    in_threads(4, lambda number: promote(store, model_name, added[number]))
    moves = history(versions.list_versions(model_name, store), "champion")
    assert sorted(m.version for m in moves) == sorted(added)  # none is lost
    assert [m.number for m in moves] == [1, 2, 3, 4]
    # Each knows its predecessor, so the way back leads through all of them.
    assert [m.previous for m in moves] == [None, *(m.version for m in moves[:-1])]
    assert champion(model_name, store) == moves[-1].version
    assert [rollback(store, model_name).version for _ in range(3)] == [m.version for m in moves[-2::-1]]
    assert client(store).search_registered_models(f"name = '{model_name}{LEASE}'") == []


def test_a_dead_holder_is_replaced_by_one_waiter_at_a_time(store: str, model_name: str):
    client(store).create_registered_model(model_name + LEASE, description="d0d0 held by process 1 on a dead machine")
    inside, most, order = 0, 0, []
    counting = threading.Lock()

    def work(number: int) -> None:
        nonlocal inside, most
        with exclusive(store, model_name, hold_s=1.5):
            with counting:
                inside += 1
                most = max(most, inside)
            time.sleep(0.1)
            with counting:
                inside -= 1
                order.append(number)

    started = time.monotonic()
    in_threads(5, work)
    assert (most, sorted(order)) == (1, [0, 1, 2, 3, 4])
    assert time.monotonic() - started > 1.5
    # No trace of a lock looks like a model.
    assert not [name for name in versions.list_models(store) if name.startswith(model_name)]


def test_waiting_ends_and_says_who_holds(sqlite_store: str, model_name: str):
    def enter() -> None:
        with exclusive(sqlite_store, model_name, wait_s=0.5):
            pass

    with (
        exclusive(sqlite_store, model_name),
        pytest.raises(BadRequestError, match=r"being changed by another process \(held by process \d+ on"),
    ):
        enter()
    enter()


def test_a_holder_that_took_too_long_writes_nothing_and_removes_no_one_elses_lock(sqlite_store: str, model_name: str):
    with exclusive(sqlite_store, model_name, hold_s=0.4) as lease:
        lease.check()
        time.sleep(0.5)
        with pytest.raises(BadRequestError, match="answered too slowly"):
            lease.check()
    assert client(sqlite_store).get_registered_model(model_name + LEASE)


def test_clean_up_keeps_what_is_used(sqlite_store: str, model_name: str, add_version: Callable[..., int]):
    for number in range(1, 8):
        assert add_version(sqlite_store, number) == number
    for version in (2, 3):
        promote(sqlite_store, model_name, version)
    assert spare(sqlite_store, model_name, keep=0, older_than_days=1) == []  # all are of today
    time.sleep(0.01)

    found = spare(sqlite_store, model_name, keep=2, older_than_days=0)
    # Not 7 (candidate), 3 (champion), 2 (the way back), 6 (among the newest two).
    assert [v.number for v in found] == [5, 4, 1]
    assert len(versions.list_versions(model_name, sqlite_store)) == 7
    delete_spare(sqlite_store, model_name, keep=2, older_than_days=0)
    assert [v.number for v in versions.list_versions(model_name, sqlite_store)] == [7, 6, 3, 2]
    assert rollback(sqlite_store, model_name).version == 2
    assert fetch.download(f"{model_name}@champion", sqlite_store)
