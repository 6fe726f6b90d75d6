"""What speaks against the model is said: unexplained rest, blur that varies, clipped pixels."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from skimage import data

from kernels_bank import benchmark_kernels
from pipeline.degrade import degrade
from pipeline.inference.explain import diagnose
from pipeline.inference.restorer import Restored

KERNEL = benchmark_kernels(21)


def answer(**more: float) -> Restored:
    basis = {"image": np.zeros((4, 4, 3), np.uint8), "kernel": KERNEL[0], "sigma": 0.01, "residual": 0.01}
    return Restored(**(basis | {"scale": 2, "seconds": 0.0} | more))


GREY = np.full((20, 20, 3), 128, np.uint8)


def test_an_image_of_the_model_is_not_spoken_against():
    assert diagnose(GREY, answer(spread=0.3)) == []


@pytest.mark.parametrize(
    ("image", "more", "message"),
    [
        (GREY, {"residual": 0.02}, r"4\.4/255 remain beyond the noise"),
        (GREY, {"spread": 0.5}, "differs from place to place"),
        (np.full((20, 20), 255, np.uint8), {}, "100% of the pixels are clipped"),
        (np.full((20, 20, 4), 65535, np.uint16), {}, "clipped"),
    ],
)
def test_each_sign_is_one_line(image, more, message):
    (line,) = diagnose(image, answer(**more))
    assert re.search(message, line)


def test_a_true_kernel_explains_and_a_far_too_wide_one_does_not(restorer):
    """The border is not counted: it was blurred with what lies outside the photograph."""
    hr = torch.from_numpy(data.astronaut()[:, :400]).permute(2, 0, 1)[None].float() / 255
    lr = degrade(hr, torch.from_numpy(KERNEL[0])[None], 2)[0, :, 100:196, 40:150].permute(1, 2, 0).numpy()
    image = (lr * 255).round().astype(np.uint8)
    assert diagnose(image, restorer.restore(image, 2, 0.0, KERNEL[0])) == []
    (line,) = diagnose(image, restorer.restore(image, 2, 0.0, KERNEL[3]))
    assert "the model does not explain this image" in line
