"""The protocols `camera-*`: pictures as cameras and web sites make them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from skimage import data

from kernels_bank import benchmark_kernels
from pipeline.degrade import degrade
from pipeline.evaluation.baselines import bicubic_centred
from pipeline.evaluation.cases import assumed_sigma, crop_hr, make_lr
from pipeline.evaluation.metrics import psnr
from pipeline.evaluation.protocol import PROTOCOLS

HR = data.coffee()[96:240, 200:360]
KERNEL = benchmark_kernels()[2]


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("reduction", ["area", "bicubic"])
def test_a_point_blur_leaves_what_pillow_makes_of_the_picture(reduction, scale):
    protocol = PROTOCOLS[f"camera-{reduction}"]
    hr = crop_hr(HR, scale, protocol)
    point = np.zeros((3, 3), np.float32)
    point[1, 1] = 1
    lr = make_lr(hr, point, scale, 0.0, protocol)
    how = {"area": Image.Resampling.BOX, "bicubic": Image.Resampling.BICUBIC}[reduction]
    expected = np.asarray(Image.fromarray(hr).resize((hr.shape[1] // scale, hr.shape[0] // scale), how))
    inside = np.s_[3:-3, 3:-3]
    # Pillow rounds after each of its two passes.
    assert np.abs(lr[inside] * 255 - expected[inside]).max() <= 1.01


def test_the_told_kernel_explains_the_picture_away_from_its_edges():
    import torch

    protocol = PROTOCOLS["camera-bicubic"]
    hr = crop_hr(HR, 2, protocol)
    lr = make_lr(hr, KERNEL, 2, 0.0, protocol)
    told = protocol.assumed_kernel(KERNEL, 2)
    again = degrade(torch.from_numpy(hr / 255).permute(2, 0, 1)[None], torch.from_numpy(told).double()[None], 2)
    edge = -(-told.shape[0] // 4)
    left = (again[0].permute(1, 2, 0).numpy() - lr)[edge:-edge, edge:-edge]
    assert np.abs(left).max() <= 0.5 / 255 + 1e-6


def test_the_more_is_done_to_a_picture_the_less_is_left_of_it():
    hr = crop_hr(HR, 2, PROTOCOLS["camera-area"])
    found = []
    for name, sigma in (
        ("camera-area", 0.0),
        ("camera-area-q95", 0.0),
        ("camera-area-q70", 0.0),
        ("camera-area-q70", 5 / 255),
    ):
        enlarged = bicubic_centred(make_lr(hr, KERNEL, 2, sigma, PROTOCOLS[name]), 2)
        found.append(psnr((enlarged.clip(0, 1) * 255).round().astype(np.uint8), hr, border=4))
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("name", ["camera-area", "camera-area-q85"])
def test_nobody_tells_the_noise_level(name):
    """It is estimated, and of a JPEG as the tool reads it off the file."""
    protocol = PROTOCOLS[name]
    hr = crop_hr(HR, 2, protocol)
    clean = make_lr(hr, KERNEL, 2, 0.0, PROTOCOLS["camera-area"])
    lr = make_lr(hr, KERNEL, 2, 0.0, protocol)
    told = assumed_sigma(lr, 0.7, protocol)  # the true level plays no part
    off = float(np.sqrt(np.square(lr - clean).mean()))
    assert told < 2 / 255 if off == 0 else 0.6 * off < told < 1.7 * off
    assert assumed_sigma(lr, 0.7, PROTOCOLS["usrnet-table1"]) == 0.7


def test_the_pixels_are_those_of_a_jpeg_file():
    """What libjpeg makes of the same picture through Pillow."""
    protocol = PROTOCOLS["camera-area-q85"]
    hr = crop_hr(HR, 2, protocol)
    lr = make_lr(hr, KERNEL, 2, 0.0, protocol)
    before = make_lr(hr, KERNEL, 2, 0.0, PROTOCOLS["camera-area"])
    buffer = io.BytesIO()
    Image.fromarray((before * 255).round().astype(np.uint8)).save(buffer, "JPEG", quality=85, subsampling=2)
    expected = np.asarray(Image.open(buffer)).astype(int)
    assert np.abs((lr * 255).round().astype(int) - expected).mean() < 0.5
