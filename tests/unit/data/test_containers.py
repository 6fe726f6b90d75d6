"""Tars by plain `tarfile`, Parquet by pandas and lists of URIs: what is found in them, and by which names."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from pipeline.data.sources import list_sources, read_source
from pipeline.images import BadImageError

FILES = {"a/1.png": b"first" * 300, "a/2.JPG": b"second", "b/1.png": b"third" * 70000}


def pack(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> str:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def contents(uri: str, **choices: object) -> dict[str, bytes]:
    return {source.name: read_source(source) for source in list_sources(uri, **choices)}  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_form_of_a_source_holds_the_same_images_by_the_same_names(tmp_path: Path, form: int):
    for name, data in FILES.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    rows = pd.DataFrame({"image": [{"bytes": data, "path": name} for name, data in FILES.items()], "label": [3, 1, 2]})
    rows.to_parquet(tmp_path / "set.parquet")
    (tmp_path / "list.txt").write_text("# all\n\n" + "\n".join(f"folder/{name}" for name in reversed(FILES)))
    pack(tmp_path / "set.tar", {f"./{name}": data for name, data in FILES.items()}, form)
    (tmp_path / "bucket").mkdir()
    for number, (name, data) in enumerate(FILES.items()):
        pack(tmp_path / f"bucket/part-{number}.tar", {name: data})
    for form_of_it in ("folder", "set.parquet", "list.txt", "set.tar", "bucket"):
        assert contents(str(tmp_path / form_of_it)) == FILES, form_of_it


def test_other_members_of_a_tar_are_dropped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    long = f"{'folder/' * 30}0001.seg.png"
    uri = pack(
        tmp_path / "x.tar", {"0001.jpg": b"1", "0001.json": b"{}", "0001.cls": b"7", "._0001.jpg": b"", long: b"2"}
    )
    assert contents(uri) == {"0001.jpg": b"1", long: b"2"}
    assert "x.tar: passed over, by suffix: 1 .json, 1 .cls" in capsys.readouterr().err


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_of_a_tar_that_are_no_plain_files_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: int
):
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as tar:
        for name, kind in (
            ("a.png", tarfile.REGTYPE),
            ("folder", tarfile.DIRTYPE),
            ("b.png", tarfile.SYMTYPE),
            ("c.png", tarfile.LNKTYPE),
            ("._d.png", tarfile.LNKTYPE),
            ("e.png", tarfile.GNUTYPE_SPARSE),
            ("f.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.png" if kind in {tarfile.SYMTYPE, tarfile.LNKTYPE} else ""
            tar.addfile(info)
    assert contents(str(tmp_path / "x.tar")) == {"a.png": b""}
    told = "x.tar: passed over, by suffix: 2 linked, 1 sparse, 1 device or pipe"
    assert told in capsys.readouterr().err


def test_equal_names_in_two_containers_get_the_containers(tmp_path: Path):
    for part in ("p", "q"):
        pack(tmp_path / f"{part}.tar", {"1.png": part.encode(), f"{part}.png": b""})
    assert contents(str(tmp_path)) == {"p.tar/1.png": b"p", "q.tar/1.png": b"q", "p.png": b"", "q.png": b""}


@pytest.mark.parametrize("cut", [700, 1500, 2200])
def test_what_is_whole_of_a_cut_tar_is_read_and_the_rest_is_one_bad_image(tmp_path: Path, cut: int):
    path = Path(pack(tmp_path / "x.tar", {f"{i}.png": bytes([65 + i]) * 500 for i in range(3)}))
    path.write_bytes(path.read_bytes()[:cut])
    good, bad = [], []
    for source in list_sources(str(path)):
        try:
            good.append(read_source(source))
        except BadImageError as error:
            bad.append(str(error))
    assert good == [bytes([65 + i]) * 500 for i in range(cut // 1024)]
    assert len(bad) >= 1
    assert all("x.tar" in reason for reason in bad)


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    info = tarfile.TarInfo(name)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" + (size % 256**11).to_bytes(11, "big") if size < 0 else b"\x80" + size.to_bytes(11, "big")
    block[156:157] = kind
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
    return bytes(block)


@pytest.mark.parametrize(
    "damage",
    [
        header("b.png", -512),
        header("b.png", -2048),
        header("b.png", 1 << 62),
        header("b.png", 1 << 80),
        header("long", 1 << 40, b"L"),
        header("pax", 0, b"x") * 2000,
    ],
    ids=["to itself", "back", "far", "farther", "a long name", "headers of headers"],
)
def test_a_tar_whose_headers_lie_ends_there(tmp_path: Path, damage: bytes):
    path = Path(pack(tmp_path / "x.tar", {"a.png": b"first"}))
    path.write_bytes(path.read_bytes()[:1024] + damage + bytes(1024))
    good, rest = list_sources(str(path))
    assert (good.name, read_source(good), rest.name) == ("a.png", b"first", "the rest of the tar")


def test_long_names_in_a_tar_take_as_much_memory_as_names(tmp_path: Path):
    path = Path(pack(tmp_path / "x.tar", {"a.png": b"first"}))
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(header("long", 1 << 40, b"L"))
        file.truncate(1 << 33)  # a hole
    assert [source.name for source in list_sources(str(path))] == ["a.png", "the rest of the tar"]


def test_tars_that_were_joined_are_told(tmp_path: Path):
    first, second = (Path(pack(tmp_path / f"{i}.tar", {f"{i}.png": b"x"})) for i in range(2))
    first.write_bytes(first.read_bytes() + second.read_bytes())
    good, rest = list_sources(str(first))
    assert good.name == "0.png"
    with pytest.raises(BadImageError, match="joined tars"):
        read_source(rest)


@pytest.mark.parametrize(("place", "value"), [(6, b"\x63"), (46, b"\xff")], ids=["version", "name"])
def test_a_zip_that_is_odd_in_any_way_is_refused_by_name(tmp_path: Path, place: int, value: bytes):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("\u00e9.png", b"x")  # as UTF-8, which the entry says
    data = path.read_bytes()
    at = data.index(b"PK\1\2") + place
    path.write_bytes(data[:at] + value + data[at + 1 :])
    with pytest.raises(BadRequestError, match=r"x\.zip: not a readable zip"):
        list_sources(str(path))


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path):
    rows = [pa.array([b"x"])] * 2
    parquet.write_table(pa.Table.from_arrays(rows, names=["image", "image"]), tmp_path / "x.parquet")
    with pytest.raises(BadRequestError, match="2 columns are called 'image'"):
        list_sources(str(tmp_path / "x.parquet"), column="image")


def test_a_list_may_begin_with_the_mark_of_windows(tmp_path: Path):
    (tmp_path / "1.png").write_bytes(b"x")
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf1.png\r\n")
    assert contents(str(tmp_path / "list.txt")) == {"1.png": b"x"}


@pytest.mark.parametrize(("name", "content"), [("x.tar", b"no tar" * 500), ("x.parquet", b"PAR1 not"), ("e.tar", b"")])
def test_what_is_no_container_is_refused_by_name(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadRequestError, match=name):
        list_sources(str(tmp_path / name))


def test_a_compressed_tar_is_refused_with_what_to_do(tmp_path: Path):
    (tmp_path / "x.tar.gz").write_bytes(b"")
    with pytest.raises(BadRequestError, match=r"unpack it to a \.tar"):
        list_sources(str(tmp_path / "x.tar.gz"))


def test_a_column_of_plain_bytes_is_named_by_its_rows_and_read_in_any_order(tmp_path: Path):
    data = [bytes([i]) * (i + 1) for i in range(100)]
    table = pa.table({"jpg": pa.array(data, pa.large_binary()), "id": list(range(100))})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=37)
    sources = list_sources(str(tmp_path / "x.parquet"))
    assert [source.name for source in sources[:2]] == ["00000000", "00000001"]
    for row in np.random.default_rng(0).permutation(100):
        assert read_source(sources[row]) == data[row]


def test_a_row_without_bytes_is_a_bad_image(tmp_path: Path):
    rows = [{"bytes": None, "path": "gone.png"}, {"bytes": b"x", "path": None}]
    parquet.write_table(pa.table({"image": rows}), tmp_path / "x.parquet")
    numbered, gone = list_sources(str(tmp_path / "x.parquet"))
    assert (read_source(numbered), numbered.name, gone.name) == (b"x", "00000001", "gone.png")
    with pytest.raises(BadImageError, match="row 0 holds no bytes"):
        read_source(gone)


def test_a_path_that_leads_upwards_or_names_nothing_is_replaced_by_the_row(tmp_path: Path):
    paths = ["../a.png", "x/../../b.png", "..\\c.png", "./", "/d/e.png", "f\x1b.png"]
    rows = [{"bytes": b"x", "path": path} for path in paths]
    parquet.write_table(pa.table({"image": rows}), tmp_path / "x.parquet")
    names = {source.member: source.name for source in list_sources(str(tmp_path / "x.parquet"))}
    assert [names[row] for row in range(6)] == [*(f"{row:08d}" for row in range(4)), "d/e.png", "f\\x1b.png"]


@pytest.mark.parametrize(
    "paths", [pa.array([7, 8]), pa.array([b"a.png", b"\xff"]), pa.array([{"bytes": b"a.png"}] * 2), pa.nulls(2)]
)
def test_paths_that_are_no_text_are_replaced_by_the_row(tmp_path: Path, paths: pa.Array):
    images = pa.StructArray.from_arrays([pa.array([b"one", b"two"]), paths], ["bytes", "path"])
    parquet.write_table(pa.table({"image": images}), tmp_path / "x.parquet")
    assert contents(str(tmp_path / "x.parquet")) == {"00000000": b"one", "00000001": b"two"}


def test_bytes_that_are_a_struct_are_no_images(tmp_path: Path):
    parquet.write_table(pa.table({"image": [{"bytes": {"bytes": b"x"}}]}), tmp_path / "x.parquet")
    with pytest.raises(BadRequestError, match=r"it has only image \(struct"):
        list_sources(str(tmp_path / "x.parquet"))


def damage(path: Path, group: int, column: int) -> None:
    """Spoil the header of a page of a Parquet file."""
    about = parquet.ParquetFile(path).metadata.row_group(group).column(column)
    data = bytearray(path.read_bytes())
    data[about.data_page_offset : about.data_page_offset + 12] = b"\xff" * 12
    path.write_bytes(data)


def test_a_damaged_page_costs_its_own_rows_and_no_row_gets_anothers_bytes(tmp_path: Path):
    path = tmp_path / "x.parquet"
    rows = [bytes([65 + i]) * 50 for i in range(9)]
    parquet.write_table(pa.table({"image": rows}), path, row_group_size=3, use_dictionary=False)
    damage(path, group=1, column=0)
    sources = list_sources(str(path))
    for row in (0, 1, 2, 3, 4, 5, 6, 7, 8, 4, 2):
        if row in {3, 4, 5}:
            with pytest.raises(ArtefactError, match=r"x\.parquet: damaged"):
                read_source(sources[row])
        else:
            assert read_source(sources[row]) == rows[row]


def test_damaged_paths_are_told_in_one_line(tmp_path: Path):
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"image": [{"bytes": b"x", "path": "a.png"}]}), path, use_dictionary=False)
    damage(path, group=0, column=1)
    with pytest.raises(ArtefactError, match=r"x\.parquet: damaged, or no Parquet file \([^\n]+\)$"):
        list_sources(str(path))


def test_a_damaged_parquet_file_is_told_in_one_line(tmp_path: Path):
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"image": [b"x"] * 9}), path)
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[footer + 2 : footer + 2 + 20] = b"\xff" * 20
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"x\.parquet: damaged, or no Parquet file \([^\n]+\)$"):
        list_sources(str(path))


def test_a_column_is_named_where_its_type_does_not_tell(tmp_path: Path):
    parquet.write_table(pa.table({"image": [b"i"], "mask": [b"m"], "n": [1]}), tmp_path / "two.parquet")
    parquet.write_table(pa.table({"n": [1]}), tmp_path / "none.parquet")
    with pytest.raises(BadRequestError, match=r"it has image, mask; .*--column"):
        list_sources(str(tmp_path / "two.parquet"))
    assert contents(str(tmp_path / "two.parquet"), column="mask") == {"00000000": b"m"}
    with pytest.raises(BadRequestError, match=r"column 'n' holds no images; it has image, mask"):
        list_sources(str(tmp_path / "two.parquet"), column="n")
    with pytest.raises(BadRequestError, match=r"it has only n \(int64\)"):
        list_sources(str(tmp_path / "none.parquet"))


def test_a_list_names_files_folders_and_containers(tmp_path: Path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/x.png").write_bytes(b"x")
    (tmp_path / "alone.png").write_bytes(b"alone")
    pack(tmp_path / "t.tar", {"y.png": b"y"})
    (tmp_path / "list.txt").write_text(f"{tmp_path}/alone.png\none\n file://{tmp_path}/t.tar \n")
    assert contents(str(tmp_path / "list.txt")) == {"alone.png": b"alone", "x.png": b"x", "y.png": b"y"}
    (tmp_path / "list.txt").write_text("alone.png\nmissing.png\n")
    gone = list_sources(str(tmp_path / "list.txt"))[1]
    with pytest.raises(ArtefactError, match=r"missing\.png"):
        read_source(gone)


def test_lines_that_lead_upwards_name_their_files_without_dots(tmp_path: Path):
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "one").mkdir()
    (tmp_path / "one/link").symlink_to(tmp_path / "real/deep")
    (tmp_path / "b.png").write_bytes(b"b")
    (tmp_path / "one/a.png").write_bytes(b"a")
    (tmp_path / "real/c.png").write_bytes(b"c")
    (tmp_path / "real/a.png").write_bytes(b"behind the link")
    (tmp_path / "one/list.txt").write_text("a.png\n../b.png\nlink/../c.png\n")
    assert contents(str(tmp_path / "one/list.txt")) == {"one/a.png": b"a", "b.png": b"b", "real/c.png": b"c"}
    (tmp_path / "one/list.txt").write_text("../real/deep/..\n../one\n")
    names = {"real/a.png": b"behind the link", "c.png": b"c", "one/a.png": b"a"}
    assert contents(str(tmp_path / "one/../one/list.txt")) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no line names an image"),
        ("a.png\nftp://x/y.png", r"list\.txt, line 2: .*unknown scheme 'ftp'"),
        ("nowhere", r"line 1: nowhere: no such folder"),
        ("list.txt", "a list in a list"),
    ],
)
def test_a_line_that_is_no_source_is_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(BadRequestError, match=message):
        list_sources(str(tmp_path / "list.txt"))


def test_restoring_a_folder_leaves_its_containers_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.png").write_bytes(b"a")
    pack(tmp_path / "backup.tar", {"b.png": b"b"})
    assert contents(str(tmp_path), nested=False) == {"a.png": b"a"}
    assert "passed over, by suffix: 1 .tar" in capsys.readouterr().err
