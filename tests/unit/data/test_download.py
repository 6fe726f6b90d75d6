"""Downloads against a local server that knows ranges, cuts connections, and may hold the wrong file."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pytest

from kernels_bank.runtime import os_errors
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from kernels_bank.runtime.lease import only_writer
from kernels_bank.runtime.output import MARK, own_output
from pipeline.data import download as module
from pipeline.data.download import Published, download

CONTENT = np.random.default_rng(0).bytes(3_500_000)
FILE = Published("photos.zip", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


class Server(BaseHTTPRequestHandler):
    """Serves `content`; cuts the connection after `cut_after` bytes of an answer; `status` overrides."""

    content = CONTENT
    cut_after = len(CONTENT)
    ranges = True
    status = 0
    asked: list[str | None]

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        """One answer."""
        asked = self.headers.get("Range")
        self.asked.append(asked)
        if self.status:
            self.send_error(self.status)
            return
        start = 0
        if asked and self.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        else:
            self.send_response(200)
        body = self.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.cut_after])
        self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    monkeypatch.setattr(module, "_RETRY_WAITS_S", (0.0, 0.0))
    handler = type("Handler", (Server,), {"asked": []})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
    handler.url = f"http://127.0.0.1:{listening.server_port}/DIV2K/"
    yield handler
    listening.shutdown()
    listening.server_close()


def killed(folder: Path, after: int) -> None:
    """Leave what a download leaves that is killed after some bytes."""
    with own_output(str(folder), "folder of downloads"):
        (folder / "photos.zip.part").write_bytes(CONTENT[:after])


def test_a_file_comes_whole_and_is_not_fetched_again(server: type[Server], tmp_path: Path):
    for _ in range(2):
        path = download(FILE, tmp_path / "new", base_url=server.url)
        assert path.read_bytes() == CONTENT
    assert server.asked == [None]
    assert sorted(p.name for p in path.parent.iterdir()) == [MARK, "photos.zip"]


def test_cut_connections_go_on_where_they_were_cut(server: type[Server], tmp_path: Path):
    server.cut_after = 1_500_000
    assert download(FILE, tmp_path, base_url=server.url).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1500000-", "bytes=3000000-"]


def test_a_full_disk_is_not_taken_for_a_cut_connection(
    server: type[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = os_errors.open_named

    def full_disk(path: Path, mode: Literal["wb", "ab"], shown: Path | None = None) -> BinaryIO:
        return real("/dev/full" if path.suffix == ".part" else path, mode, shown or path)

    monkeypatch.setattr(os_errors, "open_named", full_disk)
    with pytest.raises(OSError, match="No space left") as full:
        download(FILE, tmp_path, base_url=server.url)
    assert full.value.filename == str(tmp_path / "photos.zip.part")
    assert server.asked == [None], "asked again and again"


def test_a_killed_download_goes_on_in_the_next_run(server: type[Server], tmp_path: Path):
    killed(tmp_path, 2_000_001)
    assert download(FILE, tmp_path, base_url=server.url).read_bytes() == CONTENT
    assert server.asked == ["bytes=2000001-"]


def test_a_server_without_ranges_starts_over(server: type[Server], tmp_path: Path):
    server.ranges = False
    killed(tmp_path, 1000)
    assert download(FILE, tmp_path, base_url=server.url).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_nothing_of_it_stays(server: type[Server], tmp_path: Path):
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(ArtefactError, match="is not the published"):
        download(FILE, tmp_path, base_url=server.url)
    assert [p.name for p in tmp_path.iterdir()] == [MARK]


def test_a_part_that_another_program_left_is_refused_untouched(server: type[Server], tmp_path: Path):
    (tmp_path / "photos.zip.part").write_bytes(b"of a browser")
    with pytest.raises(BadRequestError, match=r"holds photos\.zip\.part, which this command did not make"):
        download(FILE, tmp_path, base_url=server.url)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("photos.zip.part", b"of a browser")]
    assert server.asked == []


def test_a_second_download_to_the_folder_is_refused(server: type[Server], tmp_path: Path):
    with only_writer(str(tmp_path)), pytest.raises(BadRequestError, match="is at work on it"):
        download(FILE, tmp_path, base_url=server.url)


def test_another_file_is_refused_before_it_is_fetched(server: type[Server], tmp_path: Path):
    server.content = CONTENT[:5000]
    with pytest.raises(ArtefactError, match="has 5000 bytes, the published one 3500000"):
        download(FILE, tmp_path, base_url=server.url)


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, 3)])
def test_an_error_names_the_address_and_only_passing_ones_are_tried_again(
    server: type[Server], tmp_path: Path, status: int, requests: int
):
    server.status = status
    with pytest.raises(BadRequestError, match=rf"DIV2K/photos\.zip: the server says {status}"):
        download(FILE, tmp_path, base_url=server.url)
    assert len(server.asked) == requests


def test_no_server_is_one_clear_line(server: type[Server], tmp_path: Path):
    with pytest.raises(BadRequestError, match=r"no connection .*the same command resumes it"):
        download(FILE, tmp_path, base_url="http://127.0.0.1:9/DIV2K")


@pytest.mark.parametrize(
    "url",
    ["foo", "", "http://[::1", "http://", "file:///etc", "http://host:99999", "http://host:0", "http://host/a b"],
)
def test_what_is_no_address_of_a_server_is_one_line_at_once(tmp_path: Path, url: str):
    with pytest.raises(BadRequestError, match=r"^--base-url '.*': write http://HOST/FOLDER"):
        download(FILE, tmp_path / "new", base_url=url)
    assert not (tmp_path / "new").exists()


def test_a_login_in_the_address_is_refused_and_not_shown(tmp_path: Path):
    with pytest.raises(BadRequestError, match=r"'http://\*\*\*@host': .*without a login"):
        download(FILE, tmp_path / "new", base_url="http://me:sesame123456@host")
