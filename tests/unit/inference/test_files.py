"""Files in, files out: nothing is lost, nothing overwritten, nothing done twice, nothing hidden."""

from __future__ import annotations

import errno
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from kernels_bank import load_kernels
from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import BadRequestError, JobFailedError
from kernels_bank.runtime.lease import ENTRY
from kernels_bank.runtime.lease_store import lease_store
from pipeline.images.decode import decode_photograph
from pipeline.images.encode import encode_photograph, encode_png
from pipeline.images.parts import Metadata
from pipeline.images.photograph import Photograph
from pipeline.inference import batch, files, restorer
from pipeline.inference.batch import checked, planned, restore_files
from pipeline.inference.estimate import Estimate
from pipeline.inference.settings import RestoreSettings
from tests.unit.images.samples import profile


@pytest.fixture
def same(unchanging, delta, tmp_path):
    """Settings of a restoration that changes no pixel; more by keyword."""

    def make(**more: object) -> RestoreSettings:
        basis = {"model": str(unchanging), "kernel": str(delta), "sigma": 0.0, "scale": 1, "name": "{stem}"}
        places = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
        return RestoreSettings.model_validate(basis | places | more)

    (tmp_path / "in").mkdir()
    return make


def put(folder: Path, name: str, pixels: np.ndarray, kind: str = "png", icc: bytes | None = None) -> None:
    (folder / "in" / name).write_bytes(encode_photograph(Photograph(pixels, kind, Metadata(icc)), 100))  # type: ignore[arg-type]


def read(folder: Path, name: str) -> Photograph:
    return decode_photograph((folder / "out" / name).read_bytes())


def test_a_restoration_that_changes_nothing_loses_nothing(same, tmp_path):
    random = np.random.default_rng(0)
    deep = random.integers(0, 65536, (24, 33, 3), np.uint16)
    clear = random.integers(0, 256, (24, 33, 4), np.uint8)
    put(tmp_path, "deep.png", deep, icc=profile(b"RGB "))
    put(tmp_path, "deep2.tif", deep, "tiff", icc=profile(b"RGB "))
    put(tmp_path, "grey.png", deep[..., 0])
    put(tmp_path, "clear.webp", clear, "webp")
    settings = same(format="same", quality=100)
    checked(restore_files(settings))
    for name, pixels in {"deep.png": deep, "deep2.tif": deep, "grey.png": deep[..., 0], "clear.webp": clear}.items():
        np.testing.assert_array_equal(read(tmp_path, name).pixels, pixels)
    assert read(tmp_path, "deep.png").metadata.icc == read(tmp_path, "deep2.tif").metadata.icc == profile(b"RGB ")
    assert read(tmp_path, "grey.png").metadata.icc is None


def test_the_line_of_progress_moves_within_a_single_photograph(same, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kernels_bank.runtime.progress._LOG_INTERVAL_S", 0.0)
    put(tmp_path, "a.png", photo)
    restore_files(same())
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("restore: 0/1 image (0 image/s, ETA unknown) a.png: window 1 of 1")
    assert any("image/s, ETA 0 s) a.png: window 1 of 1" in line for line in lines[1:-1])
    assert lines[-1].startswith("restore: 1/1 image (")


def test_a_turned_photograph_is_turned_and_then_restored(folder, photo, tmp_path):
    """EXIF-rotated = rotated, then restored: the same pixels."""
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo).save(tmp_path / "in" / "turned.png", exif=exif)
    Image.fromarray(np.rot90(photo, -1).copy()).save(tmp_path / "in" / "upright.png")
    restore_files(RestoreSettings(model=str(folder), input=str(tmp_path / "in"), output=str(tmp_path / "out")))
    turned, upright = (read(tmp_path, f"{name}-x2.png").pixels for name in ("turned", "upright"))
    assert turned.shape == (144, 128, 3)
    np.testing.assert_array_equal(turned, upright)


@pytest.mark.parametrize(
    ("wrong", "told"), [({"kernel": "/no/kernel.npy"}, "no such file"), ({"x0": "Bicubic"}, "holds no model")]
)
def test_a_wrong_kernel_or_start_is_told_before_a_network_is_loaded(same, monkeypatch, wrong, told):
    monkeypatch.setattr(files.Restorer, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(BadRequestError, match=told):
        files.load_context(same(**wrong))


def test_results_of_another_kernel_estimate_are_another_request(folder, tmp_path, monkeypatch):
    settings = RestoreSettings(model=str(folder), input=str(tmp_path), output=str(tmp_path / "out"))
    np.save(tmp_path / "kernel.npy", np.eye(3, dtype=np.float32) / 3)
    known = settings.model_copy(update={"kernel": str(tmp_path / "kernel.npy")})
    before = [files.load_context(one).request for one in (settings, known)]
    monkeypatch.setattr(files, "ESTIMATE_VERSION", 0)
    after = [files.load_context(one).request for one in (settings, known)]
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_depth_format_and_name(same, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 33, 3), np.uint8)
    (tmp_path / "in" / "deep").mkdir()
    put(tmp_path, "deep/a.png", pixels)
    checked(restore_files(same(depth="16", format="tiff", name="{stem}_{scale}")))
    found = read(tmp_path, "deep/a_1.tif")
    assert (found.kind, found.pixels.dtype) == ("tiff", np.uint16)
    np.testing.assert_array_equal(found.pixels, pixels.astype(np.uint16) * 257)


@pytest.mark.parametrize("name", ["fixed", "{stem}/{scale}", "../{stem}", "{stem}{other}", "{stem", ".{stem}"])
def test_names_that_lead_astray_are_refused(same, name):
    with pytest.raises(ValidationError, match="name"):
        same(name=name)


def test_beside_each_result_lies_what_was_assumed(folder, photo, tmp_path):
    (tmp_path / "in").mkdir()
    put(tmp_path, "cat.png", photo)
    settings = RestoreSettings(model=str(folder), input=str(tmp_path / "in" / "cat.png"), output=str(tmp_path / "out"))
    checked(restore_files(settings))
    names = {"cat-x2.png", "cat-x2.json", "cat-x2-kernel.npy", "cat-x2-kernel.png", "cat-x2-compare.png"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    about = json.loads((tmp_path / "out" / "cat-x2.json").read_text())
    assert (about["kernel"], about["sigma_from"], about["windows"]) == ("estimated", "estimated", 1)
    assert about["kernel_round"] in {0, 1}
    assert set(about["seconds"]) == {"read", "estimate", "restore"}
    kernel = np.load(tmp_path / "out" / "cat-x2-kernel.npy")
    drawn = load_kernels(tmp_path / "out" / "cat-x2-kernel.png")[0]  # a picture has no lobes
    np.testing.assert_allclose(drawn, kernel.clip(0) / kernel.clip(0).sum(), atol=2e-5)
    # The estimate given back as the known kernel restores the same picture.
    again = settings.model_copy(
        update={"kernel": str(tmp_path / "out" / "cat-x2-kernel.npy"), "output": str(tmp_path / "known")}
    )
    checked(restore_files(again))
    known = decode_photograph((tmp_path / "known" / "cat-x2.png").read_bytes()).pixels
    assert np.abs(known.astype(int) - read(tmp_path, "cat-x2.png").pixels).max() <= 1  # the file's sum is 1 to rounding


def test_a_kernel_for_every_place_comes_with_a_picture_of_them(folder, photo, tmp_path):
    (tmp_path / "in").mkdir()
    put(tmp_path, "cat.png", photo)
    places = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
    settings = RestoreSettings(model=str(folder), kernel_field=True, strength=0.8, **places)
    assert "estimated for every place" in planned(settings).text
    checked(restore_files(settings))
    assert read(tmp_path, "cat-x2-field.png").pixels.shape == (128, 144, 3)
    report = json.loads((tmp_path / "out" / "cat-x2.json").read_text())
    assert sum(report["kernel_field"]["shares"]) == pytest.approx(1, abs=0.01)
    assert report["strength"] == 0.8
    assert [outcome.note for outcome in restore_files(settings)] == ["was finished before"]
    with pytest.raises(BadRequestError, match="this command did not make it"):
        restore_files(settings.model_copy(update={"strength": 0.7}))
    with pytest.raises(ValidationError, match="leave out --kernel or --kernel-field"):
        RestoreSettings(kernel_field=True, kernel="k.npy", **places)


def test_where_kernels_of_places_disagree_the_option_is_named(folder, photo, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    put(tmp_path, "cat.png", photo)
    kernel = np.full((3, 3), 1 / 9, np.float32)
    monkeypatch.setattr(restorer, "estimate_kernel", lambda *_: Estimate(kernel, 0, 0.9))
    settings = RestoreSettings(model=str(folder), input=str(tmp_path / "in"), output=str(tmp_path / "out"))
    (outcome,) = restore_files(settings)
    assert "kernels are 0.90 apart" in outcome.note
    assert "--kernel-field estimates a kernel for every place" in outcome.note


def test_settings_that_came_later_leave_earlier_results_as_they_are(same, tmp_path):
    """At their defaults they are not part of a request's digest, so that results made before stay finished."""
    plain = files.load_context(same()).request
    assert plain == files.load_context(same(strength=1.0, kernel_field=False)).request
    assert plain != files.load_context(same(strength=0.9)).request
    formats = {files.load_context(same(precision=name)).request for name in ("auto", "float32", "bf16")}
    assert len(formats) == 3
    assert plain in formats


def test_what_the_format_of_the_results_cannot_hold_is_said_before_the_work(same, photo, tmp_path, monkeypatch):
    put(tmp_path, "long.png", np.zeros((1, 16_384, 3), np.uint8))
    put(tmp_path, "deep.png", np.zeros((4, 4, 3), np.uint16))
    settings = same(format="webp")
    plan = planned(settings)
    assert plan.broken == ["deep.png", "long.png"]
    assert "not possible   long.png: a webp has up to 16383 pixels a side, not 16384; choose --format tiff" in plan.text

    def work(*_: object, **__: object) -> None:
        pytest.fail("is restored")

    monkeypatch.setattr(restorer.Restorer, "restore", work)
    said = {outcome.name: outcome.note for outcome in restore_files(settings)}
    assert said["long.png"].startswith("a webp has up to 16383 pixels a side")
    assert said["deep.png"].startswith("a webp has 8 bits")


def test_broken_files_are_reported_and_the_others_restored(same, photo, tmp_path):
    put(tmp_path, "whole.png", photo)
    (tmp_path / "in" / "cut.png").write_bytes(encode_png(photo)[:200])
    (tmp_path / "in" / "text.png").write_text("no image")
    put(tmp_path, "one.png", photo[:1, :1])
    outcomes = restore_files(same())
    assert {o.name: bool(o.output) for o in outcomes} == {
        "cut.png": False,
        "one.png": True,
        "text.png": False,
        "whole.png": True,
    }
    with pytest.raises(JobFailedError, match=r"2 of 4 images were not restored: cut\.png, text\.png"):
        checked(outcomes)
    assert not list((tmp_path / "out").glob("cut*"))


def test_what_is_finished_is_left_and_what_others_made_is_kept(same, photo, tmp_path):
    put(tmp_path, "a.png", photo)
    checked(restore_files(same()))
    result = tmp_path / "out" / "a.png"
    os.utime(result, (1, 1))
    (again,) = restore_files(same())
    assert again.note == "was finished before"
    assert result.stat().st_mtime == 1
    # Another request, another input, and a picture nobody here made: each is refused by name.
    with pytest.raises(BadRequestError, match=r"a\.png exists and this command did not make it; .*--overwrite"):
        restore_files(same(sigma=0.1))
    put(tmp_path, "a.png", photo[::-1])
    with pytest.raises(BadRequestError, match=r"a\.png exists"):
        restore_files(same())
    checked(restore_files(same(overwrite=True)))
    np.testing.assert_array_equal(read(tmp_path, "a.png").pixels, photo[::-1])
    (tmp_path / "out" / "a.json").unlink()
    with pytest.raises(BadRequestError, match=r"a\.png exists and no restoration made it"):
        restore_files(same())


@pytest.mark.parametrize("theirs", ["a.png", "a.json", "a-kernel.png", "a-kernel.npy", "a-compare.png"])
def test_what_no_restoration_made_is_never_overwritten(same, photo, tmp_path, theirs):
    put(tmp_path, "a.png", photo)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / theirs).write_bytes(b'{"request": "of another program"}')
    with pytest.raises(BadRequestError, match=f"{theirs} exists and no restoration made it; it stays as it is"):
        restore_files(same(overwrite=True))
    assert [file.name for file in (tmp_path / "out").iterdir()] == [theirs]
    assert (tmp_path / "out" / theirs).read_bytes() == b'{"request": "of another program"}'


def test_names_of_all_outputs_are_looked_at_before_the_work(same, photo, tmp_path):
    put(tmp_path, "a.png", photo)
    put(tmp_path, "a-kernel.png", photo)
    with pytest.raises(BadRequestError, match=r"a-kernel\.png and a\.png would both write .*a-kernel\.png"):
        restore_files(same())
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_name_that_is_too_long_costs_its_own_file_alone(same, photo, tmp_path):
    put(tmp_path, f"{'x' * 240}.png", photo)  # 240 + "-compare.png" fits, with a temporary name beside it
    put(tmp_path, f"{'y' * 250}.png", photo)
    put(tmp_path, "z.png", photo)
    outcomes = restore_files(same())
    assert [bool(outcome.output) for outcome in outcomes] == [True, False, True]
    assert "up to 262 bytes, 255 are possible; use --name" in outcomes[1].note


def test_a_folder_that_cannot_be_made_costs_its_own_files_alone(same, photo, tmp_path):
    pixels = encode_png(photo)
    deep = "/".join(["g" * 200] * 25)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("a.png", f"d/{'f' * 300}/b.png", f"{deep}/c.png", "sub/in/d.png", "z.png"):
            archive.writestr(name, pixels)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").write_text("theirs")
    settings = same(input=str(tmp_path / "x.zip"))
    assert planned(settings).broken == [f"d/{'f' * 300}/b.png", f"{deep}/c.png", "sub/in/d.png"]
    outcomes = {outcome.name.rpartition("/")[2]: outcome for outcome in restore_files(settings)}
    assert {name for name, outcome in outcomes.items() if outcome.output} == {"a.png", "z.png"}
    assert "a folder of its results has a name of 300 bytes, 255 are possible" in outcomes["b.png"].note
    assert "4095 are possible" in outcomes["c.png"].note
    assert f"{tmp_path}/out/sub: is no folder" in outcomes["d.png"].note
    assert (tmp_path / "out/sub").read_text() == "theirs"


def test_a_folder_that_becomes_a_file_or_a_shorter_disk_costs_one_file(same, photo, tmp_path, monkeypatch):
    """As where another program comes between, or a disk takes shorter names than most."""
    put(tmp_path, "a.png", photo)
    put(tmp_path, "b.png", photo)
    write = storage.write_bytes
    refused = [FileExistsError(errno.EEXIST, "File exists", "out/sub"), OSError(errno.ENAMETOOLONG, "too long", "a")]
    for error in refused:

        def refuse_a(uri: str, data: bytes, error: OSError = error) -> None:
            if "/a." in uri:
                raise error
            write(uri, data)

        monkeypatch.setattr(storage, "write_bytes", refuse_a)
        outcomes = restore_files(same(overwrite=True))
        assert [bool(outcome.output) for outcome in outcomes] == [False, True]
        assert outcomes[0].note == f"{error.filename}: {error.strerror}; use --name"


def test_a_name_that_is_no_text_is_restored_under_its_escapes(same, photo, tmp_path):
    put(tmp_path, "a.png", photo)
    os.link(tmp_path / "in" / "a.png", os.fsencode(tmp_path / "in") + b"/caf\xe9%20.png")
    checked(restore_files(same()))
    assert {file.name for file in (tmp_path / "out").glob("*0.png")} == {"caf\\xe9%20.png"}
    assert json.loads((tmp_path / "out" / "caf\\xe9%20.json").read_text())["input"] == "caf\\xe9%20.png"


def test_a_kill_while_overwriting_leaves_no_result_of_another_request(same, photo, tmp_path, monkeypatch):
    put(tmp_path, "a.png", photo)
    checked(restore_files(same()))

    def killed(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.inference.files.comparison", killed)
    with pytest.raises(KeyboardInterrupt):
        restore_files(same(sigma=0.1, overwrite=True))
    assert not (tmp_path / "out" / "a.png").exists()
    monkeypatch.undo()
    checked(restore_files(same(sigma=0.1)))


def test_two_inputs_never_share_an_output_and_none_is_an_input(same, photo, tmp_path):
    put(tmp_path, "a.png", photo)
    put(tmp_path, "b.png", photo)
    with pytest.raises(BadRequestError, match="is the input; results would be taken for photographs"):
        restore_files(same(output=str(tmp_path / "in")))
    with pytest.raises(BadRequestError, match=r"a\.png is the input itself"):
        restore_files(same(input=str(tmp_path / "in" / "a.png"), output=str(tmp_path / "in")))
    inside = same(output=str(tmp_path / "in" / "out"))
    assert len(checked(restore_files(inside))) == len(restore_files(inside)) == 2
    (tmp_path / "in" / "a.bmp").write_bytes(b"BM")
    # Two of one name keep their suffix.
    assert {o.name: o.output.rpartition("/")[2] for o in restore_files(inside)} == {
        "a.bmp": "",
        "a.png": "a.png.png",
        "b.png": "b.png",
    }


def test_a_kernel_of_a_bank(monkeypatch):
    class Bank:
        kernels = np.random.default_rng(0).random((4, 21, 21), np.float32)

        def __len__(self) -> int:
            return 4

    monkeypatch.setattr(files.KernelBank, "open", lambda uri: Bank())
    np.testing.assert_array_equal(files.load_kernel("bank:s3://b/bank#2"), Bank.kernels[2])
    with pytest.raises(BadRequestError, match="the bank holds kernels 0 to 3"):
        files.load_kernel("bank:x#4")
    for wrong in ("bank:x", "bank:#1", "bank:x#-1", "bank:x#one"):
        with pytest.raises(BadRequestError, match=r"write bank:URI#INDEX"):
            files.load_kernel(wrong)


def test_a_check_writes_nothing_and_says_what_would_be(same, photo, tmp_path):
    put(tmp_path, "a.png", photo)
    (tmp_path / "in" / "text.png").write_text("no image")
    plan = planned(same())
    assert "1 images would be restored at x1" in plan.text
    assert "the largest is 72 x 64" in plan.text
    assert "text.png: not a readable image" in plan.text
    with pytest.raises(JobFailedError, match=r"^1 of 2 images would not be restored: text.png$"):
        plan.checked()
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRequestError, match="is a file; name a folder"):
        planned(same(output=str(tmp_path / "file")))
    with pytest.raises(BadRequestError, match="cannot estimate a kernel"):
        planned(same(kernel=None))


@pytest.mark.parametrize(
    ("name", "kind", "shape", "bits", "settings", "told"),
    [
        ("a.png", "png", (24, 33, 4), 8, {"format": "jpeg"}, "a JPEG has no alpha"),
        ("a.png", "png", (24, 33, 3), 16, {"format": "jpeg"}, "a jpeg has 8 bits"),
        ("a.png", "png", (24, 33, 3), 16, {"format": "jpeg", "depth": "8"}, ""),
        ("a.tif", "tiff", (24, 33, 3), 16, {"format": "webp"}, "a webp has 8 bits"),
        ("a.jpg", "png", (24, 33, 4), 8, {"format": "same"}, "a JPEG has no alpha"),  # by its name a JPEG
        ("a.jpg", "jpeg", (24, 33, 3), 8, {"format": "same", "depth": "16"}, "a jpeg has 8 bits"),
        ("a.png", "png", (24, 33, 4), 16, {"format": "same"}, ""),
    ],
)
def test_a_check_names_pixels_that_the_result_cannot_hold(same, tmp_path, name, kind, shape, bits, settings, told):
    put(tmp_path, name, np.random.default_rng(0).integers(0, 2**bits, shape, f"u{bits // 8}"), kind)
    plan = planned(same(**settings))
    assert plan.broken == ([name] if told else [])
    assert (f"not possible   {name}: {told}" in plan.text) == bool(told)
    assert [outcome.note.startswith(told or "33 x 24") for outcome in restore_files(same(**settings))] == [True]


def test_memory_sizes_are_understood(same):
    assert same(max_memory="2GiB").max_memory == 2**31
    assert same(max_memory="512MiB").max_memory == 2**29


def test_no_worker_is_started_for_one(same, photo, tmp_path, monkeypatch):
    put(tmp_path, "a.png", photo)
    monkeypatch.setattr(batch, "_on_cluster", lambda *_: pytest.fail("a cluster for one worker"))
    assert Path(restore_files(same())[0].output).read_bytes()[:4] == b"\x89PNG"


def test_names_that_are_no_text_come_in_and_never_go_out(same, photo, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    (tmp_path / "in").rename(odd)
    (odd / "a.png").write_bytes(encode_png(photo))
    checked(restore_files(same(input=str(odd))))
    assert read(tmp_path, "a.png").pixels.shape == photo.shape
    (odd / "a.png").rename(Path(os.fsdecode(os.fsencode(odd) + b"/b\xe9.png")))
    single = str(next(odd.iterdir()))
    checked(restore_files(same(input=single, output=str(tmp_path / "single"))))
    with pytest.raises(BadRequestError, match="this name is not UTF-8"):
        planned(same(input=str(odd), output=str(odd) + "2"))
    with pytest.raises(ValidationError, match="not UTF-8"):
        same(name="{stem}\udce9")


def test_a_check_names_results_whose_names_are_too_long(same, photo, tmp_path):
    put(tmp_path, "n" * 245 + ".png", photo)
    put(tmp_path, "a.png", photo)
    plan = planned(same())
    assert "1 images would be restored" in plan.text
    assert "255 are possible" in plan.text
    assert plan.broken == ["n" * 245 + ".png"]
    (tmp_path / "in" / plan.broken[0]).unlink()
    planned(same()).checked()


def test_a_check_goes_on_after_what_cannot_be_read(same, photo, tmp_path):
    put(tmp_path, "b.png", photo)
    (tmp_path / "list.txt").write_text("in/a.png\nin/b.png\n")
    settings = same(input=str(tmp_path / "list.txt"))
    plan = planned(settings)
    assert plan.broken == [outcome.name for outcome in restore_files(settings) if not outcome.output] == ["a.png"]
    assert "1 images would be restored" in plan.text
    assert "not readable   a.png: " in plan.text


def test_a_restoration_that_was_taken_over_stops_before_the_next_image(same, photo, tmp_path, monkeypatch):
    """As after a suspension: another process has taken the lease meanwhile."""
    for name in ("a.png", "b.png"):
        put(tmp_path, name, photo)
    restore_one = batch.restore_job

    def stand_still(job, context, on_step):
        store = lease_store(f"{tmp_path}/out/{ENTRY}")
        store.replace(store.read(), {"pid": 7, "host": "elsewhere", "token": "other"})
        return restore_one(job, context, on_step)

    monkeypatch.setattr(batch, "restore_job", stand_still)
    with pytest.raises(JobFailedError, match="taken over by process 7 on elsewhere"):
        restore_files(same())
    assert not (tmp_path / "out" / "b.png").exists()
