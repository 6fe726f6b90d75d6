"""Sources: what is an image, what is passed over, and a zip's damaged or doubled members."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from pipeline.data.sources import list_sources, read_source
from pipeline.images import BadImageError


def test_a_folder_is_read_recursively_and_in_the_order_of_names(tmp_path: Path):
    for name in ("b/2.PNG", "a/x.jpeg", "a/readme.txt", "a/.hidden.png", ".git/1.png", "c.tiff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found = list_sources(str(tmp_path))
    assert [s.name for s in found] == ["a/x.jpeg", "b/2.PNG", "c.tiff"]
    assert [read_source(s).decode() for s in found] == ["a/x.jpeg", "b/2.PNG", "c.tiff"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_a_zip_with_one_name_are_two_images(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr("x/1.png", b"first")
        archive.writestr("__MACOSX/x/._1.png", b"resource fork")
        archive.writestr("x/1.png", b"second")
    found = list_sources(str(tmp_path / "p.zip"))
    assert [read_source(s) for s in found] == [b"first", b"second"]


def test_a_damaged_member_is_a_bad_image_not_the_end(tmp_path: Path):
    path = tmp_path / "p.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.png", b"0123456789" * 10)
    path.write_bytes(path.read_bytes().replace(b"0123456789" * 2, b"9876543210" * 2, 1))
    with pytest.raises(BadImageError, match=r"cannot be read from the zip .*CRC"):
        read_source(list_sources(str(path))[0])


def test_a_file_larger_than_any_image_is_not_read(tmp_path: Path):
    with (tmp_path / "b.png").open("wb") as sparse:
        sparse.truncate(2**31 + 1)
    with pytest.raises(ArtefactError, match=r"b\.png: larger than the 2147483648 bytes that are expected"):
        read_source(list_sources(str(tmp_path))[0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "no such folder"),
        ("file.png", b"x", "is a single file"),
        ("bad.zip", b"no zip", "not a readable zip"),
        ("folder", "empty", "no images in it"),
    ],
)
def test_what_is_no_source_says_so(tmp_path: Path, name: str, content: bytes | str | None, message: str):
    path = tmp_path / name
    if content == "empty":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(BadRequestError, match=message):
        list_sources(str(path))
