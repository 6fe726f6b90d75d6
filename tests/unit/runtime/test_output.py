"""A place is written to only by the kind of job that marked it; nothing that others made is touched."""

import os
import shutil
from pathlib import Path

import pytest

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.lease import ENTRY
from kernels_bank.runtime.output import (
    MARK,
    check_own,
    check_writable,
    not_made_again,
    note_files,
    own_output,
    remove_leftovers,
    write_once,
)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["train-000000.tar", "manifest.json", "deep/below/notes.txt", ".hidden"])
def test_a_place_that_holds_anything_else_is_refused_untouched(tmp_path: Path, name: str):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"{}")
    before = listing(tmp_path)
    refused = pytest.raises(
        BadRequestError, match=f"holds {name}, which this command did not make; nothing was touched"
    )
    with refused, own_output(str(tmp_path), "shard set"):
        pytest.fail("not ours")
    assert listing(tmp_path) == before


def test_beside_named_outputs_other_files_may_lie(tmp_path: Path):
    (tmp_path / "notes.txt").write_bytes(b"mine")
    (tmp_path / "shards").mkdir()
    with own_output(str(tmp_path), "training run", ["run.json", "checkpoints"]):
        pass
    (tmp_path / MARK).unlink()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(BadRequestError, match="holds checkpoints, which"):
        check_own(str(tmp_path), "training run", ["run.json", "checkpoints"])
    assert (tmp_path / "notes.txt").read_bytes() == b"mine"


def test_the_mark_of_another_kind_is_refused(tmp_path: Path):
    with own_output(str(tmp_path), "shard set"):
        pass
    with pytest.raises(BadRequestError, match="holds a shard set, not a kernel bank; nothing was touched"):
        check_own(str(tmp_path), "kernel bank")
    check_own(str(tmp_path), "shard set")


@pytest.mark.parametrize("content", ["[]", "{}", '{"kind": 3, "files": []}', "no json"])
def test_a_mark_that_is_none_of_ours_is_refused(tmp_path: Path, content: str):
    (tmp_path / MARK).write_text(content)
    with pytest.raises(BadRequestError, match="not a"):
        check_own(str(tmp_path), "shard set")


def test_only_noted_files_and_their_temporary_ones_are_left_over(tmp_path: Path):
    with own_output(str(tmp_path), "shard set"):
        note_files(str(tmp_path), ["train-000000.tar", "train-000001.tar"])
        note_files(str(tmp_path), ["train-000002.tar"])
        for name in ("train-000000.tar", "train-000001.tar", "train-000009.tar", ".train-000002.tar.0123456789ab.tmp"):
            storage.write_bytes(tmp_path / name, b"x")
        remove_leftovers(str(tmp_path), ["train-000000.tar"])
    assert set(listing(tmp_path)) == {MARK, "train-000000.tar", "train-000009.tar"}


@pytest.mark.parametrize("name", [ENTRY, MARK])
def test_what_a_kill_leaves_of_lease_and_mark_is_in_nobodys_way(tmp_path: Path, name: str):
    (tmp_path / storage.temporary_name(name)).write_bytes(b"")
    (tmp_path / ENTRY).write_bytes(b"")
    check_own(str(tmp_path), "shard set")


def test_a_file_that_is_always_the_same_replaces_no_other(tmp_path: Path):
    files = {tmp_path / "a" / "one": b"1", tmp_path / "a" / "two": b"2"}
    for _ in range(2):
        write_once(files)
    assert listing(tmp_path) == {"a/one": b"1", "a/two": b"2"}
    (tmp_path / "a" / "one").unlink()
    (tmp_path / "a" / "two").write_bytes(b"mine")
    with pytest.raises(BadRequestError, match="a/two: holds something else"):
        write_once(files)
    assert listing(tmp_path) == {"a/two": b"mine"}


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("file", "file is a file; name a folder"),
        ("file/below", "file is no folder"),
        ("x/" + "n" * 300, "a name of 300 bytes, 255 are possible"),
        ("loop", "Too many levels of symbolic links"),
        ("caf\udce9", "this name is not UTF-8"),
    ],
)
def test_a_place_that_takes_no_files_is_said_before_the_work(tmp_path: Path, place: str, told: str):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BadRequestError, match=told):
        check_writable(f"{tmp_path}/{place}")
    with pytest.raises(BadRequestError), own_output(f"{tmp_path}/{place}", "shard set"):
        pytest.fail("nothing can be written there")
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]  # noqa: PTH208
    check_writable(f"{tmp_path}/new/deep")


@pytest.mark.parametrize("below", ["page.html", "runs/small/state.json"])
def test_an_output_that_is_deleted_under_its_job_is_not_made_again(tmp_path: Path, below: str):
    """Also where somebody else has made a folder of that name meanwhile: it has no mark."""
    place = tmp_path / "out"
    with own_output(str(place), "evaluation"):
        storage.write_bytes(place / "deep" / "first", b"1")
        shutil.rmtree(place)
        with pytest.raises(FileNotFoundError, match="was deleted while") as error:
            storage.write_bytes(place / below, b"2")
        assert error.value.filename == str(place)
        assert not place.exists()
        place.mkdir()
        with pytest.raises(FileNotFoundError, match="was deleted while"):
            storage.write_bytes(place / below, b"2")
        storage.write_bytes(tmp_path / "out-2" / "file", b"3")
    assert not list(place.iterdir())
    storage.write_bytes(place / below, b"4")


def test_a_worker_keeps_to_its_jobs_output_too(tmp_path: Path):
    place = tmp_path / "out"
    with own_output(str(place), "training run"):
        with not_made_again(str(place)):
            storage.write_bytes(place / "unsent" / "a", b"1")
        shutil.rmtree(place)
        with not_made_again(str(place)), pytest.raises(FileNotFoundError):
            storage.write_bytes(place / "unsent" / "a", b"1")
        with pytest.raises(FileNotFoundError):
            storage.write_bytes(place / "unsent" / "a", b"1")
    assert not place.exists()
