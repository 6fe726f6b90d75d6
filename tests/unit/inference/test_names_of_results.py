"""What results are called: everyday names never stop a job, and no result is taken for a photograph."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from kernels_bank.runtime.errors import BadRequestError
from pipeline.data.sources import Source
from pipeline.images.encode import encode_png
from pipeline.inference.restore_jobs import list_jobs
from pipeline.inference.settings import RestoreSettings

PIXELS = encode_png(np.zeros((4, 4, 3), np.uint8))


def results(folder: Path, source: str = "in", **more: object) -> dict[str, str]:
    """The name of each image's result by its own."""
    settings = RestoreSettings.model_validate({"input": str(folder / source), "output": str(folder / "out")} | more)
    return {job.source.name: job.result.removeprefix(f"{folder}/out/") for job in list_jobs(settings)}


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PIXELS)


def test_whole_names_tell_images_of_one_stem_apart_whatever_else_they_meet(tmp_path: Path):
    put(tmp_path, "a.png", "a.jpg", "a.jpg.png", "b.png", "sub/a.png")
    assert results(tmp_path) == {
        "a.png": "a.png-x2.png",
        "a.jpg": "a.jpg-x2.png",
        "a.jpg.png": "a.jpg.png-x2.png",
        "b.png": "b-x2.png",
        "sub/a.png": "sub/a-x2.png",
    }


def test_results_differ_on_a_disk_that_does_not_tell_case(tmp_path: Path):
    put(tmp_path, "a.jpg", "A.png", "sub/b.png", "Sub/b.png", "caf\u00e9.png", "cafe\u0301.png")
    found = results(tmp_path)
    assert (found["a.jpg"], found["A.png"]) == ("a.jpg-x2.png", "A.png-x2.png")
    assert (found["Sub/b.png"], found["sub/b.png"]) == ("Sub/b.png-x2.png", "sub/b.png-2-x2.png")
    assert (found["cafe\u0301.png"], found["caf\u00e9.png"]) == ("cafe\u0301.png-x2.png", "caf\u00e9.png-2-x2.png")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_one_name_are_numbered(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for _ in range(3):
            archive.writestr("a.png", PIXELS)
    settings = RestoreSettings(input=str(tmp_path / "x.zip"), output=str(tmp_path / "out"))
    names = [job.result.rpartition("/")[2] for job in list_jobs(settings)]
    assert names == ["a.png-x2.png", "a.png-2-x2.png", "a.png-3-x2.png"]


def test_a_member_with_an_absolute_name_finds_its_results_again(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("/sub/a.png", PIXELS)
    assert results(tmp_path, "x.zip") == {"sub/a.png": "sub/a-x2.png"}


@pytest.mark.parametrize("name", ["../a.png", "sub/../../a.png"])
def test_no_result_lies_outside_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr("pipeline.inference.restore_jobs.list_sources", lambda *_, **__: [Source("x.new", name)])
    with pytest.raises(BadRequestError, match=r"a\.png: its result would lie outside --output .*/out; rename it"):
        results(tmp_path)


def test_a_name_with_control_characters_is_spelled(tmp_path: Path):
    put(tmp_path, "new\nline.png", "esc\x1b[31m.png", "caf\udce9.png", "caf\\xe9.png")
    found = results(tmp_path)
    assert found["new\\nline.png"] == "new\\nline-x2.png"
    assert found["esc\\x1b[31m.png"] == "esc\\x1b[31m-x2.png"
    assert len(found) == 3  # the last two are called the same
    settings = RestoreSettings(input=str(tmp_path / "in"), output=str(tmp_path / "out"))
    assert len({job.result for job in list_jobs(settings)}) == 4


def test_a_folder_that_is_called_as_a_result_is_found_before_the_work(tmp_path: Path):
    put(tmp_path, "a.png", "a-x2.png/q.png")
    with pytest.raises(BadRequestError, match=r"a\.png would be written as .*a-x2\.png, which is the folder of"):
        results(tmp_path)


@pytest.mark.parametrize("way", ["link", "dots", "below"])
def test_the_output_is_recognised_whatever_way_leads_there(tmp_path: Path, way: str):
    put(tmp_path, "a.png", "done/b.png")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    output = {"link": "link", "dots": "in/done/..", "below": "link/done"}[way]
    if way == "below":
        assert results(tmp_path, output=str(tmp_path / output)).keys() == {"a.png"}
    else:
        with pytest.raises(BadRequestError, match="is the input"):
            results(tmp_path, output=str(tmp_path / output))


def test_what_is_no_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    put(tmp_path, "a.png")
    (tmp_path / "in/gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "in/pipe.png")
    assert results(tmp_path).keys() == {"a.png"}
    assert "links to nothing and what is no file: gone.png, pipe.png" in capsys.readouterr().err
    with pytest.raises(BadRequestError, match=r"in/pipe\.png: a pipe or device, not a regular file"):
        results(tmp_path, "in/pipe.png")


@pytest.mark.parametrize(
    "name",
    ["{stem:>99999999999}", "{stem:>300000000}", "{stem:.0}", "{stem}{scale:c}", "{stem!r}", "{stem}\n", "{stem}\x1b"],
)
def test_a_template_takes_the_two_names_as_they_are(tmp_path: Path, name: str):
    with pytest.raises(ValidationError):
        RestoreSettings(input="i", output="o", name=name)
