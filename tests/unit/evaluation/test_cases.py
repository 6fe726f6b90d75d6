"""The cases of the comparison: the published protocol bit for bit, fair baselines, and the published numbers."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage import data

from kernels_bank import benchmark_kernels, load_kernels
from kernels_bank.runtime.errors import BadRequestError
from pipeline.evaluation.baselines import bicubic, bicubic_unaligned
from pipeline.evaluation.cases import BICUBIC, NONBLIND, UNALIGNED, crop_hr, make_lr, measure, restore_all
from pipeline.evaluation.images import checked_images
from pipeline.evaluation.protocol import PROTOCOLS, Protocol, load_protocol
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.images.decode import decode_image
from pipeline.images.encode import encode_png
from pipeline.inference import Restorer

TABLE1 = PROTOCOLS["usrnet-table1"]


@pytest.fixture(scope="module")
def hr() -> np.ndarray:
    return crop_hr(data.coffee()[:120, :150], 2, TABLE1)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_lr_is_what_the_published_script_makes(scale):
    """SciPy on uint8: true convolution, circular, floored to integers; then the upper-left pixel is kept."""
    hr = crop_hr(data.coffee()[:150, :150], scale, TABLE1)
    assert hr.shape == (144, 144, 3)
    for kernel in benchmark_kernels()[[0, 5, 10]]:
        published = ndimage.convolve(hr, kernel.astype(np.float64)[..., None], mode="wrap")[::scale, ::scale]
        lr = make_lr(hr, kernel, scale, 0.0, TABLE1)
        # A blur that lands on an integer up to rounding may fall to either side.
        different = np.abs(lr * 255 - published) > 1e-3
        assert different.mean() < 1e-3
        assert np.abs(lr * 255 - published).max() < 1.001


def test_noise_has_its_level_and_is_the_same_each_time(hr):
    kernel = benchmark_kernels()[3]
    clean, noisy, again = (make_lr(hr, kernel, 2, s, TABLE1) for s in (0.0, 7.65 / 255, 7.65 / 255))
    np.testing.assert_array_equal(noisy, again)
    assert (noisy - clean).std() * 255 == pytest.approx(7.65, rel=0.03)
    assert abs((noisy - clean).mean()) * 255 < 0.3


def test_crop_is_from_the_middle_and_then_a_multiple():
    image = np.arange(100 * 140 * 3, dtype=np.uint32).astype(np.uint8).reshape(100, 140, 3)
    np.testing.assert_array_equal(crop_hr(image, 3, TABLE1), image[:96, :120])
    np.testing.assert_array_equal(crop_hr(image, 2, TABLE1.model_copy(update={"crop": 60})), image[20:76, 40:96])


def test_protocols():
    assert [TABLE1.border_pixels(s) for s in (2, 3, 4)] == [4, 9, 16]
    assert [TABLE1.size_multiple(s) for s in (2, 3, 4)] == [8, 24, 8]


def test_a_protocol_of_ones_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nsigmas: {2: [0.0, 0.01]}\nborder: scale\n")
    assert load_protocol(str(file)).border_pixels(4) == 4
    for text, message in (("name: mine\nsigma: 1\nsigmas: {2: [0]}", "sigma: Extra inputs"), ("a: [", "not YAML")):
        file.write_text(text)
        with pytest.raises(BadRequestError, match=message):
            load_protocol(str(file))
    with pytest.raises(BadRequestError, match="neither a known name"):
        load_protocol("usrnet-table2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: usrnet-table1\nsigmas: {2: [0.01]}", "is that of a known one"),
        ("name: mine\nsigmas: {2: []}", "sigmas.2: Tuple should have at least 1 item"),
        ("name: mine\nsigmas: {2: [0, 0.0]}", "sigmas.2: .*given more than once"),
        ("name: mine\nsigmas: {2: [yes]}", r"p\.yaml: sigmas\.2\.0: a number is expected, got a truth value"),
        ("name: mine\nsigmas: {2: [0]}\ncrop: yes", "crop: a number is expected, got a truth value"),
        (
            "name: mine\nsigmas: {2: [0]}\ngaussian_widths: {2: [yes, 2]}",
            r"gaussian_widths\.2\.0: a number is expected",
        ),
        ("name: mine\nsigmas: {2: [0], '2': [0.1]}", "'2' is given more than once, again in line 2"),
        ("name: ''\nsigmas: {2: [0]}", "name: is empty"),
        ("name: mine\nsigmas: {yes: [0]}", r"sigmas\.True: a number is expected, got a truth value"),
        ("name: mine\nsigmas: {2: [0]}\ngaussian_widths: {2: [0, 1]}", r"gaussian_widths.2.0: .* greater than 0"),
        ("name: mine\nsigmas: {2: [0]}\njpeg: 80", "jpeg has no effect without degradation 'camera'"),
        ("name: mine\nsigmas: {2: [0]}\nreduction: bicubic", "reduction has no effect"),
    ],
)
def test_a_file_that_would_be_taken_for_something_else_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(BadRequestError, match=message):
        load_protocol(str(tmp_path / "p.yaml"))


def test_a_scale_that_is_given_again_is_refused():
    assert EvaluationSettings(model="m", images="i", scales=(2, 3)).scales == (2, 3)
    with pytest.raises(ValueError, match="given more than once"):
        EvaluationSettings(model="m", images="i", scales=(2, 3, 2))


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_bicubic_is_aligned_with_the_decimation(scale, hr):
    lr = hr[::scale, ::scale]
    enlarged = bicubic(lr, scale)
    np.testing.assert_allclose(enlarged[::scale, ::scale], lr, atol=1e-4)
    # Cubic convolution reproduces a straight line exactly, away from the replicated edge, in place.
    ramp = np.repeat(np.arange(20.0, dtype=np.float32)[None, :, None], 20, 0).repeat(3, 2)
    line = bicubic(ramp, scale)[8 * scale, 4 * scale : 14 * scale, 0]
    np.testing.assert_allclose(line, np.arange(4 * scale, 14 * scale) / scale, atol=0.05)
    plain = cv2.resize(lr.astype(np.float32), None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(bicubic_unaligned(lr, scale), plain)


def test_metrics_of_a_perfect_estimate_and_of_methods_without_a_kernel(hr):
    kernel = benchmark_kernels()[1]
    lr = make_lr(hr, kernel, 2, 0.0, PROTOCOLS["float"])
    found = restore_all(lr, kernel, 2, 0.0, {}, TABLE1)
    assert set(found) == {BICUBIC, UNALIGNED}
    values = measure(found[BICUBIC], hr, lr, kernel, 2, TABLE1)
    assert values.kernel_psnr is None
    assert values.lr_residual is None
    assert values.psnr_rounds == []
    perfect = measure(
        type(found[BICUBIC])(hr / np.float32(255), kernel, [], 0.0), hr, lr, kernel, 2, PROTOCOLS["float"]
    )
    assert perfect.psnr_rgb > 100
    assert perfect.lr_residual < 1e-6


# Official USRNet-tiny, kernels_12.mat, Set5: mean RGB PSNR over the 5 images for kernels 1-4 (x2) and 9-12 (x4).
@pytest.mark.parametrize(("scale", "kernel", "expected"), [(2, 1, 34.75), (4, 12, 28.38)])
def test_published_weights_reach_the_reference_numbers(shared, scale, kernel, expected):
    model = Restorer.load(shared / "data" / "usrnet_tiny.pth")
    true = load_kernels(shared / "data" / "kernels_12.mat")[kernel - 1]
    values = []
    for file in sorted((shared / "data" / "Set5").iterdir()):
        image = crop_hr(decode_image(file.read_bytes()), scale, TABLE1)
        lr = make_lr(image, true, scale, 0.0, TABLE1)
        estimate = restore_all(lr, true, scale, 0.0, {NONBLIND: model}, TABLE1)[NONBLIND]
        values.append(measure(estimate, image, lr, true, scale, TABLE1).psnr_rgb)
    assert len(values) == 5
    assert np.mean(values) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("scale", "gaussian", "motion"), [(2, 25.64, 21.64), (4, 24.42, 21.59)])
def test_aligned_bicubic_reaches_the_reference_numbers(shared, scale, gaussian, motion):
    kernels = load_kernels(shared / "data" / "kernels_12.mat")
    values = np.zeros((17, 12))
    for row, file in enumerate(sorted((shared / "data" / "CBSD68").iterdir())[::4]):
        image = decode_image(file.read_bytes())
        tall = image.shape[0] > image.shape[1]
        image = crop_hr(image[:480, :288] if tall else image[:288, :480], scale, TABLE1)
        for column, kernel in enumerate(kernels):
            sr = bicubic(make_lr(image, kernel, scale, 0.0, TABLE1), scale)
            estimate = (sr.clip(0, 1) * 255).round().astype(np.uint8)
            border = scale * scale
            error = (estimate.astype(float) - image)[border:-border, border:-border]
            values[row, column] = 10 * np.log10(255**2 / np.mean(error**2))
    assert values[:, :8].mean() == pytest.approx(gaussian, abs=0.02)
    assert values[:, 8:].mean() == pytest.approx(motion, abs=0.02)


def test_unknown_fields_of_a_protocol_are_refused():
    with pytest.raises(ValueError, match="sigmas"):
        Protocol(name="x", sigmas={})


@pytest.mark.parametrize("name", ["a.png", "a.zip", "list.TXT", "folder"])
def test_what_is_recommended_for_other_than_a_folder_of_images_is_taken(tmp_path: Path, name: str):
    (tmp_path / "a.png").write_bytes(encode_png(np.zeros((4, 4, 3), np.uint8)))
    (tmp_path / "folder").mkdir()
    for place in (tmp_path, tmp_path / "folder"):
        with zipfile.ZipFile(place / "a.zip", "w") as archive:
            archive.writestr("a.png", b"")
    (tmp_path / "list.TXT").write_text("a.zip\n")
    told = {
        "list.TXT": r"a.zip: unpack it; the evaluation reads image files alone$",
        "folder": r"no images in it, but 1 .zip; PNG, JPEG, WebP, BMP, TIFF, AVIF and HEIC files are used$",
    }.get(name, rf"{name}: is a single file; name its folder, a .txt list of image files, .*, and unpack zip, tar and")
    with pytest.raises(BadRequestError, match=told):
        checked_images(str(tmp_path / name), {2: benchmark_kernels()}, TABLE1)


def test_an_image_of_one_colour_is_skipped_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    black = np.zeros((40, 48, 3), np.uint8)
    framed, dotted = black.copy(), black.copy()
    framed[:4] = 255  # in the border, which is not compared
    dotted[20, 20] = 255
    for name, pixels in {"black": black, "framed": framed, "dotted": dotted}.items():
        (tmp_path / f"{name}.png").write_bytes(encode_png(pixels))
    found, skipped = checked_images(str(tmp_path), {2: benchmark_kernels()}, TABLE1)
    assert [[Path(uri).stem for uri in part] for part in (found, skipped)] == [["dotted"], ["black", "framed"]]
    assert "framed.png: skipped: what is compared of it has one colour" in capsys.readouterr().err
