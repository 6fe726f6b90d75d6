"""What comes from S3 is right or an error, through a proxy that cuts bodies whose headers promise the whole."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pyarrow.fs as pafs
import pytest

from kernels_bank.runtime import folders, s3_objects, storage
from kernels_bank.runtime.errors import BadRequestError, DamagedError
from kernels_bank.runtime.mirror import local_folder
from kernels_bank.runtime.s3 import S3Error
from pipeline.data.sources import list_sources, read_source
from pipeline.data.sources.zip_members import open_zip
from tests.helpers.fault_proxy import Fault, FaultProxy

pytestmark = pytest.mark.flow
CONTENT = np.random.default_rng(0).bytes(300_000)
HOME = "s3://test/verified"


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(s3, seed=1) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        monkeypatch.setattr("kernels_bank.runtime.s3.LONGEST_PAUSE_S", 0.01)
        yield made


@pytest.fixture
def plain(s3: str) -> object:
    """A client past the proxy."""
    return boto3.client("s3", endpoint_url=s3)


def put(plain, key: str, **how: object) -> str:
    plain.put_object(Bucket="test", Key=f"verified/{key}", Body=CONTENT, **how)
    return f"{HOME}/{key}"


def put_in_parts(plain, key: str) -> str:
    """The ETag is not the MD5 then, and there is no checksum."""
    place = {"Bucket": "test", "Key": f"verified/{key}"}
    upload = plain.create_multipart_upload(**place)["UploadId"]
    answer = plain.upload_part(**place, UploadId=upload, PartNumber=1, Body=CONTENT)
    parts = [{"PartNumber": 1, "ETag": answer["ETag"]}]
    plain.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
    return f"{HOME}/{key}"


@pytest.fixture
def objects(plain) -> dict[str, str]:
    """An object of each kind of verification."""
    storage.write_bytes(f"{HOME}/ours", CONTENT)
    return {
        "metadata": f"{HOME}/ours",
        "checksum": put(plain, "checksum", ChecksumAlgorithm="SHA256"),
        "etag": put(plain, "etag"),
        "twice": put_in_parts(plain, "parts"),
    }


CUT = [Fault("cut", share=0.4, methods="GET", path="verified/|prefix=")]


@pytest.mark.parametrize("kind", ["cut", "short", "flip", "status", "reset"])
def test_reads_are_right_whatever_comes(proxy: FaultProxy, objects: dict[str, str], tmp_path: Path, kind: str):
    proxy.faults = [Fault(kind, share=0.4, methods="GET", path="verified/")]  # type: ignore[arg-type]
    for uri in objects.values():
        for _ in range(3):
            assert storage.read_bytes(uri) == CONTENT
            assert storage.sha256_of(uri) == hashlib.sha256(CONTENT).hexdigest()
            storage.fetch(uri, tmp_path / "x")
            assert (tmp_path / "x").read_bytes() == CONTENT
    assert proxy.counts[kind] > 5


@pytest.mark.parametrize("kind", ["cut", "short"])
def test_a_server_that_always_cuts_is_one_line(proxy: FaultProxy, objects: dict[str, str], kind: str):
    proxy.faults = [Fault(kind, methods="GET", path="verified/")]  # type: ignore[arg-type]
    for uri in objects.values():
        with pytest.raises(S3Error, match=f"^{uri} .endpoint {proxy.url}.: no whole answer") as caught:
            storage.read_bytes(uri)
        assert "\n" not in str(caught.value)


def test_an_object_that_is_damaged_where_it_lies_is_read_twice_and_named(plain, proxy: FaultProxy):
    wrong = {"blindsr-sha256": hashlib.sha256(b"other").hexdigest()}
    with pytest.raises(DamagedError, match="rotten: damaged"):
        storage.read_bytes(put(plain, "rotten", Metadata=wrong))
    with pytest.raises(DamagedError, match="sound: damaged"):
        storage.read_bytes(put(plain, "sound"), sha256=hashlib.sha256(b"other").hexdigest())
    assert proxy.counts["GET"] == 4


@pytest.mark.parametrize("kind", ["flip-request", "cut-request", "reset"])
def test_writes_are_right_whatever_goes_up(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, kind: str):
    monkeypatch.setattr(s3_objects, "_PART", 5 << 20)  # the smallest that S3 takes
    proxy.faults = [Fault(kind, share=0.4, methods="PUT")]  # type: ignore[arg-type]
    large = CONTENT * 18
    storage.write_bytes(f"{HOME}/large", large)  # in two parts
    for number in range(6):
        storage.write_bytes(f"{HOME}/{number}", CONTENT)
    assert proxy.counts[kind] > 1
    proxy.faults = []
    assert storage.read_bytes(f"{HOME}/large") == large
    assert all(storage.read_bytes(f"{HOME}/{number}") == CONTENT for number in range(6))


def test_the_filesystem_for_ray_train(proxy: FaultProxy, tmp_path: Path):
    """What Ray Train does with it: copies folders both ways, lists, overwrites a file, deletes a folder."""
    filesystem, home = storage.resolve(f"{HOME}/run")
    filesystem = pickle.loads(pickle.dumps(filesystem))
    for name in ("a/weights", "a/deep/optimizer", "b"):
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes(CONTENT + name.encode())
    proxy.faults = [*CUT, Fault("cut-request", share=0.3, methods="PUT")]
    filesystem.create_dir(home)
    pafs.copy_files(str(tmp_path / "from"), home, destination_filesystem=filesystem)
    (tmp_path / "to").mkdir()
    pafs.copy_files(home, str(tmp_path / "to"), source_filesystem=filesystem)
    for name in ("a/weights", "a/deep/optimizer", "b"):
        assert (tmp_path / "to" / name).read_bytes() == CONTENT + name.encode()
    listed = filesystem.get_file_info(pafs.FileSelector(home))
    assert {(i.base_name, i.type) for i in listed} == {("a", pafs.FileType.Directory), ("b", pafs.FileType.File)}
    for content in (b"long", b""):
        with filesystem.open_output_stream(f"{home}/b") as stream:
            stream.write(content)
        with filesystem.open_input_stream(f"{home}/b") as stream:
            assert stream.read() == content
    with pytest.raises(FileNotFoundError):
        filesystem.open_input_stream(f"{home}/c")
    with pytest.raises(FileNotFoundError):
        filesystem.get_file_info(pafs.FileSelector(f"{home}/c"))
    filesystem.delete_dir(f"{home}/a")
    assert folders.list_files(f"{HOME}/run", recursive=True) == [("b", 0)]
    assert filesystem.get_file_info(f"{home}/a").type == pafs.FileType.NotFound
    assert proxy.counts["cut"] > 2


@pytest.mark.parametrize("kind", ["cut", "short", "flip"])
def test_a_zip_is_read_by_its_own_checksums(plain, proxy: FaultProxy, kind: str):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(8):
            archive.writestr(f"{number}.png", CONTENT + bytes([number]))
    plain.put_object(Bucket="test", Key="verified/x.zip", Body=packed.getvalue())
    proxy.faults = [Fault(kind, share=0.15, methods="GET", path="x.zip")]  # type: ignore[arg-type]
    open_zip.cache_clear()
    sources = list_sources(f"{HOME}/x.zip")
    assert [read_source(source) for source in sources] == [CONTENT + bytes([number]) for number in range(8)]
    assert proxy.counts[kind] > 1


def test_a_mirror_is_right_and_takes_no_name_that_climbs(plain, proxy: FaultProxy):
    place = {"Bucket": "test", "Body": CONTENT}
    for name in ("a", "b/c", "b/d e+f%20#ü"):
        plain.put_object(Key=f"verified/mirror/{name}", **place)
    proxy.faults = CUT
    with local_folder(f"{HOME}/mirror") as folder:
        assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {
            "a",
            "b/c",
            "b/d e+f%20#ü",
        }
        assert all(p.read_bytes() == CONTENT for p in folder.rglob("*") if p.is_file())
    for name in ("../../climbs", "/root", "x//y"):
        plain.put_object(Key=f"verified/odd/{name}", **place)
        with (
            pytest.raises(BadRequestError, match=r"verified/odd: holds '.*', which is no name of a file"),
            local_folder(f"{HOME}/odd"),
        ):
            pass
        plain.delete_object(Bucket="test", Key=f"verified/odd/{name}")


def test_keys_of_every_kind_are_found(plain):
    names = ["a b+c%20d#e?f&g=h/ü.png", "//x.png", "e//f.png", "plain.png", "/g.png"]
    for name in names:
        plain.put_object(Bucket="test", Key=f"verified/keys/{name}", Body=CONTENT + name.encode())
    plain.put_object(Bucket="test", Key="verified/keys/marker/", Body=b"")
    sources = list_sources(f"{HOME}/keys")
    assert sorted(source.name for source in sources) == sorted(names)
    for source in sources:
        assert storage.is_file(source.uri)
        assert read_source(source) == CONTENT + source.name.encode()
    assert [name for name, _ in folders.list_files(f"{HOME}/keys/e/")] == []
    assert [name for name, _ in folders.list_files(f"{HOME}/keys/e", recursive=True)] == ["/f.png"]
    plain.create_bucket(Bucket="empty-parts")
    plain.put_object(Bucket="empty-parts", Key="/d/x.png", Body=CONTENT)
    for uri in ("s3://empty-parts//d", "s3://empty-parts//d/", "s3://empty-parts", "s3://empty-parts/"):
        (source,) = list_sources(uri)
        assert source.uri == "s3://empty-parts//d/x.png"
        assert read_source(source) == CONTENT
    folders.move_folder(f"{HOME}/keys", f"{HOME}/moved")
    assert sorted(name for name, _ in folders.list_files(f"{HOME}/moved", recursive=True)) == sorted(names)
    folders.remove_folder(f"{HOME}/moved")
    folders.remove_folder(f"{HOME}/keys")
    assert not storage.exists(f"{HOME}/moved")
    assert not storage.exists(f"{HOME}/keys")
