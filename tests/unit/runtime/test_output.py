"""A place is written to only by the kind of job that marked it; nothing that others made is touched."""

from pathlib import Path

import pytest

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.output import MARK, check_own, note_files, own_output, remove_leftovers


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
