"""The model that photographs are restored with does little harm to pictures that blind restorers spoil."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.inference import Restorer
from pipeline.model.upsample import upsample
from pipeline.shipped import FOR_PHOTOGRAPHS
from tests.helpers.hard_pictures import Hard, hard_pictures

# dB above bicubic at least. Not here is what it spoils: lamps on black, checkerboards, photographs of 64 x 64.
HELD = {
    "text, bicubic x2": 0.1,
    "screen, area x4": 0.1,
    "lines, area x2": 1.0,
    "astronaut, bicubic x4": 0.0,
    "coffee, area x4": 0.0,
    "page, area x2": -0.4,
    "screen, JPEG 75 x2": 0.2,
}


@pytest.fixture(scope="module")
def pictures() -> dict[str, Hard]:
    pytest.importorskip("skimage")
    return {hard.name: hard for hard in hard_pictures()}


@pytest.mark.parametrize("name", HELD)
def test_it_is_better_than_bicubic(pictures: dict[str, Hard], name: str):
    hard = pictures[name]
    planes = torch.from_numpy(hard.lr.copy()).permute(2, 0, 1)[None].float() / 255
    bicubic = (upsample(planes, hard.scale, "bicubic", "centre")[0].clamp(0, 1).permute(1, 2, 0) * 255).round().numpy()
    restored = Restorer.load(FOR_PHOTOGRAPHS, torch.device("cpu")).restore(hard.lr, hard.scale).image
    gain = psnr(restored, hard.hr) - psnr(bicubic, hard.hr)
    assert gain > HELD[name], f"{gain:.2f} dB"


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    return float(-10 * np.log10(np.square((image.astype(np.float64) - truth) / 255).mean()))
