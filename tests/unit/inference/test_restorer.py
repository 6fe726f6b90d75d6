"""Restoring with a network: nothing changes inside, edges do not ring, wrong requests are one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels_bank import benchmark_kernels
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from pipeline.degrade import degrade
from pipeline.inference import Restorer, memory
from pipeline.inference.boundary import periodic_extension
from pipeline.inference.layout import torus_margin
from pipeline.inference.noise import noise_level
from pipeline.inference.planes import split_alpha


@pytest.mark.parametrize(("height", "width", "margin"), [(1, 5, 3), (17, 40, 13), (64, 63, 20), (9, 9, 30)])
def test_the_extension_keeps_the_image_and_closes_the_seam(height, width, margin):
    random = np.random.default_rng(0)
    image = random.random((height, width, 3)).cumsum(0).cumsum(1).astype(np.float32)
    extended = periodic_extension(image, margin)
    assert all(
        side % 8 == 0 and side >= own + margin for side, own in zip(extended.shape, (height, width), strict=False)
    )
    np.testing.assert_array_equal(extended[:height, :width], image)
    # The jump from the last row to the first is no larger than the ordinary steps of the band.
    for axis in (0, 1):
        seam = np.abs(np.take(extended, 0, axis) - np.take(extended, -1, axis)).max()
        steps = np.abs(np.diff(extended, axis=axis)).max()
        assert seam <= 1.01 * steps


def test_without_it_a_real_photograph_rings(restorer):
    """A photograph whose left and right edges differ: restored as if it were periodic, the edges ring."""
    ramp = np.linspace(0, 255, 96)[None, :, None] * np.ones((64, 1, 3))
    hr = torch.from_numpy(ramp / 255).permute(2, 0, 1)[None].float()
    padded = torch.nn.functional.pad(hr, (24, 24, 24, 24), mode="replicate")
    kernel = torch.from_numpy(benchmark_kernels()[3][None])
    lr = degrade(padded, kernel, 2)[..., 12:-12, 12:-12]  # blurred by what lies outside, not by the other edge
    image = (lr[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    known = kernel[0].numpy()
    extended = restorer.restore(image, 2, 0.0, known).image.astype(float)
    wrapped = restorer.nonblind(restorer.tensor(image / 255), kernel, 2, 0.0)[0].permute(1, 2, 0).numpy() * 255

    def error(sr: np.ndarray) -> float:
        return float(np.abs(sr - ramp)[:, :8].mean())

    assert error(extended) < 0.3 * error(wrapped)


def test_without_a_limit_what_the_process_already_holds_does_not_count(restorer, photo, monkeypatch):
    """A notebook that holds more than the default may still restore; a limit on the process is kept."""
    held, kernel = 5 * 2**30, benchmark_kernels(21)[1]
    before = restorer.restore(photo, 2, 0.0, kernel)
    monkeypatch.setattr(memory, "in_use", lambda device: held)
    after = restorer.restore(photo, 2, 0.0, kernel)
    np.testing.assert_array_equal(before.image, after.image)
    assert (before.windows, after.windows) == (1, 1)
    with pytest.raises(BadRequestError, match=r"5.00 GiB are too little .* raise --max-memory"):
        restorer.restore(photo, 2, 0.0, kernel, max_memory=held)


def test_a_shifted_crop_restores_to_the_same_interior(restorer, photo):
    """What lies far from the edges does not depend on where the edges are."""
    kernel = benchmark_kernels(21)[1]
    whole = restorer.restore(photo, 2, 0.0, kernel).image.astype(int)
    part = restorer.restore(photo[:, 8:], 2, 0.0, kernel).image.astype(int)
    assert np.abs(whole[40:-40, 56:-40] - part[40:-40, 40:-40]).max() <= 2


def test_the_kernel_is_read_off_the_photograph_not_off_its_extension(restorer, photo):
    lr = restorer.tensor(photo / 255)
    kernel = restorer.network.initial_kernel(lr, 2, 0.0)
    extended = restorer.tensor(periodic_extension(photo / np.float32(255), 20))
    rounds = restorer.blind(extended, 2, 0.0, observed=lr).rounds
    torch.testing.assert_close(rounds[0].kernel, kernel)
    assert not torch.allclose(restorer.network.initial_kernel(extended, 2, 0.0), kernel, atol=1e-4)


def test_the_answer_says_what_was_assumed(restorer, photo):
    restored = restorer.restore(photo, 2)
    assert restored.image.shape == (128, 144, 3)
    assert restored.image.dtype == np.uint8
    assert restored.kernel.shape[0] == restored.kernel.shape[1] >= 13
    assert restored.kernel.sum() == pytest.approx(1, abs=1e-5)
    assert restored.sigma == noise_level(photo, 0.0)
    again = degrade(
        torch.from_numpy(restored.image).permute(2, 0, 1)[None].float() / 255,
        torch.from_numpy(restored.kernel)[None],
        2,
    )
    inside = again[0].permute(1, 2, 0).numpy()[8:-8, 8:-8] - photo[8:-8, 8:-8] / 255
    assert restored.residual == pytest.approx(float(np.sqrt((inside**2).mean())), abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 3}, "was not made for scale 3; it restores 2"),
        ({"image": np.zeros((4, 4, 5), np.uint8)}, r"\(h, w, 3\) RGB or .* is expected, got \(4, 4, 5\)"),
        ({"image": np.zeros((4, 4, 3), np.float64)}, "uint8, uint16 or float32 is expected, got float64"),
        ({"image": np.full((4, 4, 3), 181, np.float32)}, r"scale \[0, 1\] is expected, found a value of 181"),
        ({"image": np.full((4, 4, 3), -128, np.float32)}, "found a value of -128"),
        ({"image": np.full((4, 4, 3), np.nan, np.float32)}, "found a value of nan"),
        ({"sigma": -1}, "sigma: `auto` or a number from 0 to 1 is expected, got -1"),
        ({"sigma": np.nan}, "sigma: .* got nan"),
        ({"sigma": np.inf}, "sigma: .* got inf"),
        ({"sigma": 25}, "sigma: .* got 25"),  # on the [0, 255] scale
        ({"sigma": True}, "sigma: .* got True"),
        ({"sigma": "Auto"}, "sigma: .* got 'Auto'"),
        ({"strength": "1"}, "strength: a number from 0 to 1 is expected, got '1'"),
        ({"trust": "0.5"}, "trust: `auto` or a number from 0 to 1 is expected, got '0.5'"),
        ({"file_error": np.nan}, "file_error: a number from 0 to 1 is expected, got nan"),
        ({"max_memory": "4G"}, "max_memory: a number from 0 is expected, got '4G'"),
        ({"max_memory": np.nan}, "max_memory: a number from 0 is expected, got nan"),
        ({"self_ensemble": "no"}, "self_ensemble: True or False is expected, got 'no'"),
        ({"kernel_field": 1}, "kernel_field: True or False is expected, got 1"),
        ({"grid": "center"}, "grid: one of corner, centre is expected, got 'center'"),
        ({"image": [[1, 2], [3, 4]]}, "image: a NumPy array is expected, got list"),
        ({"image": np.ma.masked_greater(np.eye(4, dtype=np.uint8), 0)}, "image: some of its values are masked"),
        (
            {"x0": np.zeros((4, 4, 3), np.uint8)},
            r"x0: \(128, 144, 3\) uint8, as the image, is expected, got \(4, 4, 3\)",
        ),
        ({"x0": np.zeros((128, 144, 3), np.int64)}, "as the image, is expected, got .* int64"),
        ({"x0": "lanczos"}, "x0: one of nearest, bicubic is expected, got 'lanczos'"),
        ({"x0": 3}, "x0: a NumPy array is expected, got int"),
        ({"max_memory": 2**20}, "are too little for a 72 x 64 image.*raise --max-memory"),
        ({"kernel": np.ones((4, 4), np.float32)}, "odd side"),
        ({"kernel": [[1.0]]}, "kernel: a NumPy array is expected, got list"),
        ({"kernel": np.ones((3, 3)) * 1j}, "kernel: real numbers are expected, got values of type complex128"),
        ({"kernel": np.ones((3, 3))}, "kernel: finite values of sum 1 are expected, their sum is 9; divide them by it"),
        ({"kernel": np.full((3, 3), np.nan)}, "kernel: finite values of sum 1 are expected, their sum is nan$"),
    ],
)
def test_what_it_cannot_do_is_refused(restorer, photo, arguments, message):
    with pytest.raises(BadRequestError, match=message):
        restorer.restore(**({"image": photo, "scale": 2} | arguments))


@pytest.mark.parametrize("value", [np.nan, 181])
def test_a_float_x0_is_on_the_scale_of_the_image(restorer, photo, value):
    real = photo[:4, :4] / np.float32(255)
    with pytest.raises(BadRequestError, match=rf"x0: float32 on the scale \[0, 1\].* {value}"):
        restorer.restore(real, 2, 0.0, x0=np.full((8, 8, 3), value, np.float32))


@pytest.mark.parametrize(
    ("image", "scale"),
    [
        (lambda photo: photo, np.int64(2)),
        (lambda photo: photo, 2.0),
        (lambda photo: np.ma.masked_array(photo), np.float32(2)),
        (np.asfortranarray, 2),
        (lambda photo: np.broadcast_to(photo, photo.shape), 2),  # read-only
    ],
)
def test_any_layout_of_the_pixels_and_any_type_of_number_gives_the_same(restorer, photo, image, scale):
    part, kernel = photo[:16, :16], benchmark_kernels(21)[1]
    expected = restorer.restore(part, 2, 0.01, kernel, strength=0.5).image
    restored = restorer.restore(image(part), scale, np.float64(0.01), kernel.astype(">f4"), strength=np.float64(0.5))
    assert restored.scale == 2
    np.testing.assert_array_equal(restored.image, expected)


def test_other_byte_orders_and_subclasses_are_read_as_plain_arrays(restorer, photo):
    """`np.matrix` has always two axes: a restoration wrote past the end of its memory."""
    grey, kernel = photo[:16, :16, 0], benchmark_kernels(21)[1]
    plain = restorer.restore(grey, 2, 0.01, kernel).image
    np.testing.assert_array_equal(restorer.restore(grey.view(np.matrix), 2, 0.01, kernel.view(np.matrix)).image, plain)
    deep = grey.astype(np.uint16) * 257
    swapped = restorer.restore(deep.astype(">u2"), 2, 0.01, kernel).image
    assert swapped.dtype == np.uint16
    np.testing.assert_array_equal(swapped, restorer.restore(deep, 2, 0.01, kernel).image)


def test_a_float_image_may_ring_beyond_its_scale():
    image = np.array([[-0.02, 1.02]], np.float32)
    colour, alpha = split_alpha(image)
    assert alpha is None
    assert (colour == image[..., None]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp16"}, "precision: one of auto, float32, bf16 is expected, got 'fp16'"),
        ({"device": "gpu"}, "device 'gpu': cannot be used here"),
        ({"device": "cuda:99"}, "device 'cuda:99': cannot be used here"),
        ({"device": 1.5}, "device 1.5: cannot be used here"),
    ],
)
def test_an_unknown_device_or_precision_is_refused(folder, arguments, message):
    with pytest.raises(BadRequestError, match=message):
        Restorer.load(folder, **arguments)


def test_a_device_may_be_given_by_name(folder):
    assert Restorer.load(folder, device="cpu").device == torch.device("cpu")


def test_damaged_or_missing_models_are_refused(folder, tmp_path):
    with pytest.raises(ArtefactError, match=r"holds no model\.json"):
        Restorer.load(tmp_path)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = bytearray((tmp_path / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(bytes(weights))
    with pytest.raises(ArtefactError, match="was changed or damaged"):
        Restorer.load(tmp_path)


def test_the_answer_has_the_kind_and_type_of_the_question(restorer, photo):
    kernel = benchmark_kernels(21)[1]
    rgb = restorer.restore(photo, 2, 0.0, kernel).image
    deep = restorer.restore(photo.astype(np.uint16) * 257, 2, 0.0, kernel).image
    real = restorer.restore(photo / np.float32(255), 2, 0.0, kernel).image
    assert (rgb.dtype, deep.dtype, real.dtype) == (np.uint8, np.uint16, np.float32)
    np.testing.assert_allclose(deep / 65535, real, atol=0.6 / 65535)
    np.testing.assert_allclose(rgb / 255, real, atol=0.6 / 255)
    assert len(np.unique(deep)) > 256  # more than 8 bits come out
    grey = restorer.restore(photo[..., 0], 2, 0.0, kernel).image
    assert grey.shape == (128, 144)
    equal = restorer.restore(np.repeat(photo[..., :1], 3, axis=2), 2, 0.0, kernel).image
    assert np.abs(grey.astype(int) - equal.mean(-1)).max() <= 1


@pytest.mark.parametrize("level", [255, 0, 77])
def test_an_even_alpha_stays_exactly_so_and_colours_do_not_see_it(restorer, photo, level):
    kernel = benchmark_kernels(21)[1]
    alpha = np.full((*photo.shape[:2], 1), level, np.uint8)
    restored = restorer.restore(np.concatenate([photo, alpha], axis=2), 2, 0.0, kernel).image
    assert (restored[..., 3] == level).all()
    np.testing.assert_array_equal(restored[..., :3], restorer.restore(photo, 2, 0.0, kernel).image)


def test_alpha_is_restored_like_a_grey_image_without_noise(restorer, photo):
    kernel = benchmark_kernels(21)[1]
    restored = restorer.restore(np.concatenate([photo, photo[..., :1]], axis=2), 2, 0.02, kernel).image
    alone = restorer.restore(photo[..., 0], 2, 0.0, kernel).image
    assert np.abs(restored[..., 3].astype(int) - alone).max() <= 1


def test_x0_of_another_model_is_that_models_restoration(restorer, lively, photo):
    kernel = benchmark_kernels(21)[1]
    first = lively.restore(photo / np.float32(255), 2, 0.01, kernel)
    by_model = restorer.restore(photo / np.float32(255), 2, 0.01, kernel, x0=lively).image
    by_image = restorer.restore(photo / np.float32(255), 2, 0.01, kernel, x0=first.image).image
    own = restorer.restore(photo / np.float32(255), 2, 0.01, kernel).image
    inside = (slice(40, -40), slice(40, -40))  # the image knows nothing of the other model's band
    assert np.abs(by_model - by_image)[inside].max() < 2e-3
    assert np.abs(by_model - own)[inside].max() > 1e-2
    bicubic = restorer.restore(photo / np.float32(255), 2, 0.01, kernel, x0="bicubic").image
    np.testing.assert_array_equal(bicubic, own)  # this model's own start


def test_the_guard_decides_and_the_winning_round_is_told(restorer, photo):
    restored = restorer.restore(photo, 2, grid="corner")
    lr = photo / np.float32(255)
    extended = restorer.tensor(periodic_extension(lr, torus_margin(2, 13)))
    out = restorer.blind(extended, 2, restored.sigma, observed=restorer.tensor(lr))
    assert restored.kernel_round == int(out.kernel_round[0])
    np.testing.assert_array_equal(restored.kernel, out.kernel[0].numpy())
    assert restorer.restore(photo, 2, kernel=restored.kernel).kernel_round is None
