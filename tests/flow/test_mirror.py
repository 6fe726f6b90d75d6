"""A local folder for one on S3, over a real S3 server."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kernels_bank.runtime import folders, storage
from kernels_bank.runtime.errors import JobFailedError
from kernels_bank.runtime.mirror import local_folder

pytestmark = pytest.mark.flow
URI = "s3://test/mirror"
# Appends a line every 20 ms, as a journal grows, until it is killed.
WRITES = f"""
import time
from kernels_bank.runtime.mirror import local_folder
with local_folder("{URI}", every_s=0.2) as folder, (folder / "journal").open("a") as lines:
    for number in range(100000):
        print(number, file=lines, flush=True)
        time.sleep(0.02)
"""


def at(uri: str) -> dict[str, bytes]:
    return {name: storage.read_bytes(f"{uri}/{name}") for name, _ in folders.list_files(uri, recursive=True)}


@pytest.mark.usefixtures("s3")
def test_a_killed_block_leaves_what_it_had_and_the_next_goes_on():
    process = subprocess.Popen([sys.executable, "-c", WRITES])
    deadline = time.monotonic() + 60
    while at(URI).get("journal", b"").count(b"\n") < 20:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    journal = at(URI)["journal"]
    with local_folder(URI) as folder:
        assert (folder / "journal").read_bytes() == journal
        assert journal.startswith(b"0\n1\n2\n")
        storage.write_bytes(folder / "pictures" / "a.png", b"a")
        storage.write_bytes(folder / "summary", b"done")
        (folder / "journal").unlink()
    assert at(URI) == {"pictures/a.png": b"a", "summary": b"done"}

    # An error ends the block; what it wrote is kept, what it left alone is not sent again.
    before = modified("summary")
    with pytest.raises(KeyboardInterrupt):
        write_and_stop()
    assert at(URI) == {"pictures/a.png": b"b", "summary": b"done"}
    assert modified("summary") == before


def write_and_stop() -> None:
    with local_folder(URI) as folder:
        (folder / "pictures" / "a.png").write_bytes(b"b")
        raise KeyboardInterrupt


def modified(name: str) -> object:
    filesystem, path = storage.resolve(f"{URI}/{name}")
    return filesystem.get_file_info(path).mtime


def test_a_local_folder_is_itself(tmp_path: Path):
    with local_folder(str(tmp_path / "x")) as folder:
        assert folder == tmp_path / "x"
    with local_folder((tmp_path / "a b").as_uri()) as folder:
        assert folder == tmp_path / "a b"


@pytest.mark.usefixtures("s3")
def test_nothing_is_sent_to_a_place_that_another_process_has_taken_over():
    taken = threading.Event()

    def check() -> None:
        if taken.is_set():
            raise JobFailedError("taken over")

    def work() -> None:
        with local_folder(f"{URI}-taken", every_s=0.05, check=check) as folder:
            (folder / "early").write_bytes(b"1")
            deadline = time.monotonic() + 60
            while "early" not in at(f"{URI}-taken"):
                assert time.monotonic() < deadline
            taken.set()
            (folder / "late").write_bytes(b"2")

    with pytest.raises(JobFailedError, match="taken over"):
        work()
    assert at(f"{URI}-taken") == {"early": b"1"}
