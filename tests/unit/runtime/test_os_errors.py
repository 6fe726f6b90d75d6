"""What the system refuses is one line with the path, wherever it is raised and whatever is wrapped around it."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from kernels_bank.runtime import folders, os_errors, storage, uris
from kernels_bank.runtime.errors import JobFailedError
from kernels_bank.runtime.rows import plain_errors

REPO = Path(__file__).parents[3]


def raised(code: int, name: str | None = "/data/out/a.tar") -> OSError:
    return OSError(code, os.strerror(code), name) if name else OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (raised(errno.ENOSPC), "/data/out/a.tar: no space left on device; free space there; what is finished is kept"),
        (raised(errno.EROFS), "/data/out/a.tar: read-only file system; make it writable; what is finished"),
        (raised(errno.ENAMETOOLONG), "/data/out/a.tar: file name too long; what is finished"),
        (raised(errno.ENOENT), "/data/out/a.tar: no such file or directory; what is finished"),
        (raised(errno.EMFILE, None), "Too many open files; raise the limit of open files"),
    ],
)
def test_a_line_says_the_path_what_and_what_to_do(error: OSError, line: str):
    assert os_errors.explain(error).startswith(line)


def test_the_cause_counts_however_it_is_wrapped():
    inner = raised(errno.ENOSPC)
    try:
        try:
            raise inner
        except OSError as error:
            raise RuntimeError("in between") from error
    except RuntimeError as error:
        middle = error
    outer = RayTaskError("write", "Traceback ...", middle)
    assert os_errors.explain(outer) == os_errors.explain(inner)
    assert os_errors.explain(ValueError("a bug")) is None


@pytest.mark.parametrize("written", [b"x", bytes(1 << 16)], ids=["few bytes", "more than a buffer"])
def test_a_full_disk_is_named_by_the_write_and_by_the_close(written: bytes):
    with pytest.raises(OSError, match="No space left") as full, os_errors.open_named("/dev/full", "ab") as stream:
        stream.write(written)
    assert full.value.filename == "/dev/full"
    assert os_errors.explain(full.value).startswith("/dev/full: no space left on device; free space there")


def test_the_error_with_a_path_counts_before_one_that_came_of_it():
    closing = raised(errno.ENOSPC, None)
    closing.__context__ = raised(errno.ENOSPC)
    assert os_errors.explain(closing).startswith("/data/out/a.tar: no space left")
    closing.__context__ = raised(errno.ENOENT)  # another one, that was dealt with
    assert os_errors.explain(closing).startswith("No space left on device; free space there")


def test_an_error_that_has_nothing_to_do_with_it_hides_no_other():
    bug = KeyError("a bug")
    bug.__context__ = raised(errno.ENOENT)
    assert os_errors.explain(bug) is not None
    bug.__suppress_context__ = True  # raise ... from None
    assert os_errors.explain(bug) is None


def test_a_circle_of_causes_ends():
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert os_errors.explain(one) is None


def test_any_job_ends_with_one_line_and_status_1(tmp_path: Path):
    """A file larger than the limit stands for a full disk: the same error at the same place of every writer.

    With -B: Python itself would leave cut off byte code of what it imports, and that breaks every later import.
    """
    job = (
        "import sys; from pipeline.cli import Command, run\n"
        "from kernels_bank.runtime import storage\n"
        "class Job(Command):\n    output: str\n"
        "run(Job, lambda c: storage.write_bytes(c.output + '/big', b'x' * 4096))\n"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", job, "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=REPO,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)),
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert "ile too large; raise the limit of a file's size" in done.stderr
    assert not list(tmp_path.iterdir())


def test_listing_enters_a_folder_once_and_knows_names_that_are_no_text(tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"12")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(".")
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")).write_bytes(b"1")
    assert folders.list_files(tmp_path, recursive=True) == [("a/b/file", 2), ("caf\udce9", 1)]
    assert folders.list_files(tmp_path) == [("caf\udce9", 1)]
    assert folders.list_files(tmp_path / "none") == []


def test_a_file_uri_is_unquoted_once(tmp_path: Path):
    storage.write_bytes(f"file://{tmp_path}/a%2520b", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["a%20b"]
    root = uris.absolute(f"file://{tmp_path}")
    assert storage.read_bytes(uris.join(root, "a%20b")) == b"x"


def test_a_write_that_fails_names_the_file_that_was_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # cut off, it breaks every later import
    target = tmp_path / "a.tar"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as found:
            storage.write_bytes(target, bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os_errors.describe(found.value).startswith(f"{target}: file too large; ")
    assert not list(tmp_path.iterdir())


def test_a_name_that_an_error_has_is_kept():
    with pytest.raises(OSError, match=r"a\.tar"), os_errors.named("/other"):
        raise raised(errno.ENOSPC)
    with pytest.raises(OSError, match="/other"), os_errors.named("/other"):
        raise raised(errno.ENOSPC, None)


def test_a_task_tells_what_the_system_refused_and_nothing_else():
    line = r"^/data/out/a.tar: no space left on device; free space there; "
    with pytest.raises(JobFailedError, match=line), os_errors.told():
        raise raised(errno.ENOSPC)
    with pytest.raises(OSError, match=r"^not the system's$"), os_errors.told():
        raise OSError("not the system's")


def test_rays_advice_is_not_taken_for_the_path():
    line = "/data/out/a.tar: no space left on device; free space there"
    task = RayTaskError("write", "Traceback ...", JobFailedError(f"{line}\nFailed to apply UDF transform"))
    with pytest.raises(JobFailedError, match=f"^{line}$"), plain_errors():
        raise task
