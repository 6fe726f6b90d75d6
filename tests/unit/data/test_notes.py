"""Notes of a job are kept in parts and read back by the next attempt; damaged parts are ignored."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from kernels_bank.runtime import folders, storage
from pipeline.data import inspection, shards
from pipeline.data.inspection import Inspected
from pipeline.data.manifest import ShardSettings
from pipeline.data.notes import Notes
from pipeline.data.sources import Source, list_places
from pipeline.images.encode import encode_png

MANY = {f"{i:032x}": ["a" * 64, i, 7, "b" * 64] for i in range(2000)}


def test_what_was_noted_is_recalled_by_a_later_try(tmp_path: Path):
    folder = str(tmp_path / "notes")
    assert list(Notes(folder).recall()) == []
    with Notes(folder) as notes:
        for key, value in list(MANY.items())[:1500]:
            notes.add(key, value)
        before_the_end = dict(Notes(folder).recall())
    assert len(before_the_end) > 1000  # what a kill here would have left
    assert before_the_end.items() <= MANY.items()
    with Notes(folder) as notes:
        for key, value in list(MANY.items())[1500:]:
            notes.add(key, value)
    assert dict(Notes(folder).recall()) == MANY


def test_an_error_still_writes_what_is_known(tmp_path: Path):
    def fail() -> None:
        with Notes(str(tmp_path)) as notes:
            notes.add("k", [1])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert dict(Notes(str(tmp_path)).recall()) == {"k": [1]}


def test_a_damaged_part_and_other_files_are_left_out(tmp_path: Path):
    with Notes(str(tmp_path)) as notes:
        for key, value in MANY.items():
            notes.add(key, value)
    first, *others = sorted(tmp_path.iterdir())
    assert others
    first.write_bytes(first.read_bytes()[:-40])
    (tmp_path / ".half.jsonl.0123456789ab.tmp").write_bytes(b'["k", 1]\n')
    (tmp_path / "mine.jsonl").write_bytes(b"no JSON\n")
    left = dict(Notes(str(tmp_path)).recall())
    assert 0 < len(left) < len(MANY)
    assert left.items() <= MANY.items()


def test_without_a_folder_nothing_is_kept():
    with Notes(None) as notes:
        notes.add("k", 1)
        assert list(notes.recall()) == []


def test_a_file_that_is_written_to_has_another_stamp_even_with_its_old_size_and_time(tmp_path: Path):
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    (listed,) = folders.stamped_files(tmp_path)
    assert listed == ("a.png", 3, storage.stamp(file))
    file.write_bytes(b"two")
    os.utime(file, ns=times)
    assert storage.stamp(file) != listed.stamp
    assert storage.stamp(tmp_path / "none") == ""


def test_notes_hold_for_the_very_file_member_and_place(tmp_path: Path):
    """Recalled are images whose file is as it was; another stamp, member or place is looked at anew."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encode_png(np.zeros((40, 40, 3), np.uint8)))
    places = list_places(str(tmp_path))
    stamps = inspection._stamps(places)
    assert set(stamps) == {str(tmp_path / "a.png"), str(tmp_path / "b.png")}
    sources = [Source(place.uri, place.name) for place in places]
    with Notes(str(tmp_path / "notes")) as notes:
        for source in sources:
            notes.add(inspection._image_key(source, stamps), ["a" * 64, 40, 40, "b" * 64])
    expected = [Inspected(source, "a" * 64, 40, 40, "b" * 64, "") for source in sources]

    def recalled(asked: list[Source], stamps: dict[str, str]) -> list[Inspected | None]:
        found: list[Inspected | None] = [None] * len(asked)
        inspection._recall(found, asked, stamps, Notes(str(tmp_path / "notes")))
        return found

    assert recalled(sources, stamps) == expected
    assert recalled(sources[::-1], stamps) == expected[::-1]
    other = stamps | {sources[1].uri: "another"}
    assert recalled(sources, other) == [expected[0], None]
    assert recalled([Source(sources[0].uri, "a.png", member=3)], stamps) == [None]


@pytest.mark.parametrize("spoil", [b"", b'{"made_from": "', b"[]", b"null", b"{}", None], ids=str)
def test_a_shard_whose_note_is_damaged_is_written_again(tmp_path: Path, spoil: bytes | None):
    data = encode_png(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    (tmp_path / "a.png").write_bytes(data)
    source = Source(str(tmp_path / "a.png"), "a.png")
    image = Inspected(source, hashlib.sha256(data).hexdigest(), 40, 40, "b" * 64, "")
    task = {"name": "train-000000.tar", "files": [asdict(image)]}
    first = shards._write_one(str(tmp_path), task, ShardSettings(tile=32))
    tar, note = tmp_path / "train-000000.tar", tmp_path / "_notes" / "train-000000.tar.json"
    whole, written = tar.read_bytes(), tar.stat().st_mtime_ns
    assert shards._write_one(str(tmp_path), task, ShardSettings(tile=32)) == first
    assert tar.stat().st_mtime_ns == written
    # None: all of it is there, but for the digest.
    note.write_bytes(
        json.dumps(first | {"shard": first["shard"] | {"sha256": "0"}}).encode() if spoil is None else spoil
    )
    again = shards._write_one(str(tmp_path), task, ShardSettings(tile=32))
    assert again["shard"] == first["shard"]
    assert tar.stat().st_mtime_ns > written
    assert tar.read_bytes() == whole
    assert json.loads(note.read_bytes()) == again
