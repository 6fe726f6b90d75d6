"""URIs, atomic writes and digests on the local disk; S3 is tested over HTTP in tests/flow."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from kernels_bank.runtime import folders, storage, uris
from kernels_bank.runtime.errors import ArtefactError, BadRequestError, DamagedError


def test_local_paths_and_file_uris_are_the_same_place(tmp_path: Path):
    storage.write_bytes(f"file://{tmp_path}/a/b.bin", b"xyz")
    assert storage.read_bytes(tmp_path / "a" / "b.bin") == b"xyz"
    assert storage.exists(tmp_path / "a")
    assert folders.list_files(tmp_path, recursive=True) == [("a/b.bin", 3)]
    assert folders.list_files(tmp_path) == []


def test_a_folder_is_moved_whole(tmp_path: Path):
    storage.write_bytes(tmp_path / "run" / "a" / "b.bin", b"xyz")
    folders.move_folder(tmp_path / "run", tmp_path / "run.1")
    assert folders.list_files(tmp_path, recursive=True) == [("run.1/a/b.bin", 3)]


def test_unknown_scheme_is_refused():
    with pytest.raises(BadRequestError, match="ftp"):
        storage.resolve("ftp://host/x")


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path):
    target = tmp_path / "x.json"
    storage.write_json(target, {"old": 1})

    def write_half() -> None:
        with storage.atomic_writer(target) as stream:
            stream.write(b"half")
            assert storage.read_json(target) == {"old": 1}
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_half()
    assert storage.read_json(target) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_equal_values_give_equal_bytes_and_digests(tmp_path: Path):
    storage.write_json(tmp_path / "a", {"x": 1, "y": [1, 2]})
    storage.write_json(tmp_path / "b", {"y": [1, 2], "x": 1})
    assert storage.sha256_of(tmp_path / "a") == storage.sha256_of(tmp_path / "b")
    assert storage.digest_of({"x": 1, "y": 2}) == storage.digest_of({"y": 2, "x": 1}) != storage.digest_of({"x": 1})


def test_missing_and_damaged_files_are_named(tmp_path: Path):
    for read in (storage.read_bytes, storage.read_json, storage.sha256_of):
        with pytest.raises(ArtefactError, match="nowhere"):
            read(tmp_path / "nowhere")
    (tmp_path / "bad").write_text("{")
    with pytest.raises(ArtefactError, match="bad: not a JSON"):
        storage.read_json(tmp_path / "bad")


def test_a_file_that_is_not_what_is_known_of_it_is_refused(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"abc")
    assert storage.read_bytes(tmp_path / "x", hashlib.sha256(b"abc").hexdigest()) == b"abc"
    with pytest.raises(DamagedError, match="x: damaged"):
        storage.read_bytes(tmp_path / "x", hashlib.sha256(b"abd").hexdigest())


def test_what_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(ArtefactError, match=rf"{tmp_path}: a folder, not a regular file$"):
        storage.read_bytes(tmp_path)


def test_folders_are_removed_and_missing_ones_are_fine(tmp_path: Path):
    storage.write_bytes(tmp_path / "d" / "x", b"1")
    folders.remove_folder(tmp_path / "d")
    folders.remove_folder(tmp_path / "d")
    assert not storage.exists(tmp_path / "d")


def test_absolute_does_not_depend_on_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert uris.absolute("x/y") == str(tmp_path / "x" / "y")
    assert uris.absolute("s3://b/x/") == "s3://b/x"
    assert uris.join("s3://b/x", "y") == "s3://b/x/y"


def test_names_that_are_no_text_are_looked_at_moved_and_removed(tmp_path: Path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    assert storage.exists(folder)
    assert storage.is_file(folder / "a")
    assert not storage.is_file(folder)
    assert not storage.exists(folder / "a" / "below")
    folders.move_folder(folder, tmp_path / "deep" / "new")
    storage.remove_file(tmp_path / "deep" / "new" / "a")
    folders.remove_folder(tmp_path / "deep")
    folders.remove_folder(tmp_path / "deep")
    assert not list(tmp_path.iterdir())


def test_what_a_link_leads_to_is_never_removed(tmp_path: Path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "a").write_bytes(b"1")
    (tmp_path / "link").symlink_to("theirs")
    with pytest.raises(OSError, match="symbolic link"):
        folders.remove_folder(tmp_path / "link")
    assert (tmp_path / "theirs" / "a").read_bytes() == b"1"


@pytest.mark.parametrize("uri", ["file:///a/b%20c", "file://localhost/a/b%20c", "file:/a/b%20c"])
def test_all_spellings_of_a_file_uri_are_one_path(uri: str):
    assert uris.absolute(uri) == "/a/b c"


@pytest.mark.parametrize("uri", ["file://server/a", "file://a", "s3:/bucket/a", "a\0b", "file:///a%00b", "http://a/b"])
def test_what_is_no_place_is_one_line(uri: str):
    with pytest.raises(BadRequestError) as told:
        storage.resolve(uri)
    assert "\n" not in str(told.value)
    assert "\0" not in str(told.value)


def test_a_name_that_begins_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert [uris.path_of(name) for name in ("~", "~/x.png", "~no-such-user.png", "a/~b")] == [
        "/home/me",
        "/home/me/x.png",
        f"{tmp_path}/~no-such-user.png",
        f"{tmp_path}/a/~b",
    ]


def test_a_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert [str(uris.local(name)) for name in ("a", "~/b", "file:///c%20d")] == ["a", "/home/me/b", "/c d"]
    with pytest.raises(BadRequestError, match="s3://b/c: a folder of this machine is expected"):
        uris.local("s3://b/c")


def test_a_user_without_a_home_folder_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # what it does without HOME and an entry in passwd
    with pytest.raises(BadRequestError, match=r"~/x\.png: this user has no home folder; set HOME"):
        uris.path_of("~/x.png")
