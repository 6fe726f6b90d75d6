"""Laws of the one degradation: y = (x (*) k) down_s + n."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from kernels_bank import sample_gaussian
from pipeline.degrade import _direct, _fourier, degrade, quantize


def kernels(count, size, seed=0):
    drawn = np.random.default_rng(seed).random((count, size, size)) ** 4
    return torch.from_numpy(drawn / drawn.sum((1, 2), keepdims=True))


# In float64 all goes by FFT; in float32 small kernels are summed directly.
PRECISIONS = {torch.float64: 1e-12, torch.float32: 1e-6}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width", "size"), [(24, 36, 11), (36, 24, 21), (24, 24, 3)])
def test_equals_scipys_wrapped_convolution_and_decimation(scale, height, width, size, precision):
    hr = torch.rand(2, 3, height, width, dtype=torch.float64)
    kernel = kernels(2, size)
    lr = degrade(hr.to(precision), kernel.to(precision), scale)
    for image, k, found in zip(hr, kernel, lr, strict=True):
        for channel, plane in zip(image, found, strict=True):
            expected = ndimage.convolve(channel.numpy(), k.numpy(), mode="wrap")[::scale, ::scale]
            np.testing.assert_allclose(plane.numpy(), expected, atol=PRECISIONS[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_is_linear_with_the_adjoint_that_autograd_gives(scale, precision):
    """<A x, y> = <x, A^T y>, A^T from the gradient of <A x, y>."""
    kernel = kernels(2, 5).to(precision)
    x = torch.rand(2, 3, 12, 24, dtype=precision, requires_grad=True)
    other = torch.rand_like(x)
    y = torch.rand(2, 3, 12 // scale, 24 // scale, dtype=precision)
    (adjoint,) = torch.autograd.grad((degrade(x, kernel, scale) * y).sum(), x)
    torch.testing.assert_close((other * adjoint).sum(), (degrade(other, kernel, scale) * y).sum())


def test_a_delta_without_noise_at_scale_1_is_the_identity():
    hr = torch.rand(1, 3, 9, 11)
    delta = torch.zeros(1, 5, 5)
    delta[0, 2, 2] = 1
    torch.testing.assert_close(degrade(hr, delta, 1), hr, atol=1e-6, rtol=0)


def test_blur_is_true_convolution_about_the_middle_pixel():
    """An impulse becomes the kernel itself, not its mirror image."""
    kernel = kernels(1, 5)
    hr = torch.zeros(1, 1, 11, 11, dtype=torch.float64)
    hr[0, 0, 5, 5] = 1
    torch.testing.assert_close(degrade(hr, kernel, 1)[0, 0, 3:8, 3:8], kernel[0])


def test_decimation_keeps_the_upper_left_pixel():
    hr = torch.arange(36.0).reshape(1, 1, 6, 6)
    delta = torch.ones(1, 1, 1)
    assert torch.equal(degrade(hr, delta, 3), hr[..., ::3, ::3])


def test_each_image_has_its_own_kernel_and_noise_is_added_as_given():
    hr, kernel, noise = torch.rand(2, 3, 12, 12), kernels(2, 5).float(), torch.randn(2, 3, 6, 6)
    both = degrade(hr, kernel, 2, noise)
    for i in range(2):
        torch.testing.assert_close(both[i : i + 1], degrade(hr[i : i + 1], kernel[i : i + 1], 2) + noise[i : i + 1])


@pytest.mark.parametrize(
    ("hr", "kernel", "scale", "message"),
    [
        ((2, 3, 12, 12), (1, 5, 5), 2, r"\(2, 3, 12, 12\) and \(1, 5, 5\)"),
        ((1, 3, 12, 12), (1, 4, 4), 2, "side 4 is even"),
        ((1, 3, 12, 13), (1, 5, 5), 2, "12 x 13 is not a multiple of scale 2"),
        ((1, 3, 12, 12), (1, 5, 5), 0, "scale 0"),
        ((1, 3, 12, 12), (1, 13, 13), 2, "13 x 13 is larger than the image 12 x 12"),
    ],
)
def test_refuses_what_does_not_fit_and_says_the_shape(hr, kernel, scale, message):
    with pytest.raises(ValueError, match=message):
        degrade(torch.rand(hr), torch.rand(kernel), scale)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_the_faint_tails_of_a_gaussian_change_no_bit(scale):
    """They are below what float32 holds at full precision, and cost processors ten times a multiplication."""
    kernels = torch.from_numpy(sample_gaussian(8, 21, rng=np.random.default_rng(0)))
    assert ((kernels > 0) & (kernels < torch.finfo(torch.float32).tiny)).any()
    images = torch.rand(8, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    without = kernels.where(kernels > 1e-30, 0)
    work = _fourier if scale == 1 else _direct
    assert torch.equal(degrade(images, kernels, scale), work(images, without, scale))
    if scale > 1:  # no bit but by a Fourier transform, which spreads its own rounding over the image
        assert torch.equal(degrade(images, kernels, scale), _direct(images, kernels, scale))


def test_refuses_noise_of_another_size():
    with pytest.raises(ValueError, match=r"\(1, 3, 12, 12\) does not fit the LR image \(1, 3, 6, 6\)"):
        degrade(torch.rand(1, 3, 12, 12), torch.rand(1, 5, 5), 2, torch.rand(1, 3, 12, 12))


def test_quantisation_rounds_or_floors_like_8_bit_files():
    lr = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.2, -0.1])
    assert torch.equal(quantize(lr, "none"), lr)
    torch.testing.assert_close(quantize(lr, "round") * 255, torch.tensor([0.0, 0, 1, 255, 255, 0]))
    torch.testing.assert_close(quantize(lr, "floor") * 255, torch.tensor([0.0, 0, 0, 255, 255, 0]))
    with pytest.raises(ValueError, match="ceil"):
        quantize(lr, "ceil")


def test_floor_is_what_scipy_makes_of_uint8_images():
    """The published code blurs uint8 arrays, which SciPy truncates."""
    image = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    kernel = kernels(1, 5, seed=1)
    expected = ndimage.convolve(image, kernel[0].numpy(), mode="wrap")
    hr = torch.from_numpy(image.astype(np.float64) / 255)[None, None]
    np.testing.assert_array_equal(quantize(degrade(hr, kernel, 1), "floor")[0, 0].numpy() * 255, expected)
