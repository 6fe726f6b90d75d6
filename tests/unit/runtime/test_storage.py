"""URIs, atomic writes and digests on the local disk; S3 is tested over HTTP in tests/flow."""

from __future__ import annotations

import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import ArtefactError, BadRequestError


def test_local_paths_and_file_uris_are_the_same_place(tmp_path: Path):
    storage.write_bytes(f"file://{tmp_path}/a/b.bin", b"xyz")
    assert storage.read_bytes(tmp_path / "a" / "b.bin") == b"xyz"
    assert storage.exists(tmp_path / "a")
    assert storage.list_files(tmp_path, recursive=True) == [("a/b.bin", 3)]
    assert storage.list_files(tmp_path) == []


def test_a_folder_is_moved_whole(tmp_path: Path):
    storage.write_bytes(tmp_path / "run" / "a" / "b.bin", b"xyz")
    storage.move_folder(tmp_path / "run", tmp_path / "run.1")
    assert storage.list_files(tmp_path, recursive=True) == [("run.1/a/b.bin", 3)]


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


def test_storage_that_is_slow_to_fail_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def away(uri: str | Path) -> tuple[Any, str]:
        return SimpleNamespace(get_file_info=lambda path: asked.append(path) or _refused()), str(uri)

    monkeypatch.setattr(storage, "resolve", away)
    monkeypatch.setattr(storage, "_PATIENCE_S", -1.0)
    with pytest.raises(ArtefactError, match=r"x: cannot be read \(no answer\); attempts made: 1$"):
        storage.read_bytes(tmp_path / "x")
    assert len(asked) == 1


def _refused() -> None:
    raise OSError("no answer")


def test_folders_are_removed_and_missing_ones_are_fine(tmp_path: Path):
    storage.write_bytes(tmp_path / "d" / "x", b"1")
    storage.remove_folder(tmp_path / "d")
    storage.remove_folder(tmp_path / "d")
    assert not storage.exists(tmp_path / "d")


def test_absolute_does_not_depend_on_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("x/y") == str(tmp_path / "x" / "y")
    assert storage.absolute("s3://b/x/") == "s3://b/x"
    assert storage.join("s3://b/x", "y") == "s3://b/x/y"


class _Unavailable(BaseHTTPRequestHandler):
    """An S3 server with too much to do."""

    def do_POST(self) -> None:
        self.server.asked += 1  # type: ignore[attr-defined]
        self.send_error(503)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("tries", [1, 2])
def test_a_filesystem_tries_as_often_in_another_process(monkeypatch: pytest.MonkeyPatch, tries: int, copied: bool):
    """Pyarrow forgets its retries when it is pickled, which Ray does with each filesystem that it is handed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Unavailable)
    server.asked = 0  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    try:
        filesystem, path = storage.resolve("s3://bucket/key", tries)
        if copied:
            filesystem = pickle.loads(pickle.dumps(filesystem))
        with pytest.raises(OSError, match="SERVICE_UNAVAILABLE"), filesystem.open_output_stream(path) as stream:
            stream.write(b"x")
    finally:
        server.shutdown()
        server.server_close()
    assert server.asked == tries  # type: ignore[attr-defined]
