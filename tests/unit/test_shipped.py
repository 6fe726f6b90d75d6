"""What ships restores a photograph that it was never trained on, at every scale that it says it can."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels_bank.benchmark import benchmark_kernels
from kernels_bank.runtime.storage import read_bytes
from pipeline.data.photographs import copy_photographs
from pipeline.evaluation.cases import (
    BICUBIC,
    BLIND,
    NONBLIND,
    Estimate,
    assumed_sigma,
    crop_hr,
    make_lr,
    measure,
    restore_all,
)
from pipeline.evaluation.protocol import PROTOCOLS
from pipeline.images.decode import decode_image
from pipeline.inference import Restorer
from pipeline.inference.boundary import periodic_extension
from pipeline.serving.settings import ServeSettings
from pipeline.shipped import FOR_PHOTOGRAPHS, SCHEME, shipped_folder

PROTOCOL = PROTOCOLS["usrnet-table1"]
SERVED = ServeSettings().model
NAMES = sorted(path.parent.name for path in shipped_folder(SERVED).parent.glob("*/model.json"))
# Of each camera model, the one that its restorer goes on from.
CAMERAS = {"blind-sr-camera": ("blind-sr", 4)}
KERNEL = benchmark_kernels()[3]  # a round Gaussian, sigma 2
# Of each photograph, by scale: dB above bicubic, dB below the true kernel, correlation of the kernels. At x4 a smooth
# photograph shows too little of its kernel, so there the mean of two photographs says more.
EACH = {2: (2.5, 0.5, 0.99), 3: (2.0, 0.5, 0.99), 4: (-0.1, 1.5, 0.98)}
MEAN = {2: (4.0, 0.3), 3: (3.0, 0.3), 4: (1.2, 1.0)}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    _, held_out = copy_photographs(tmp_path_factory.mktemp("photographs"))
    return [decode_image(read_bytes(str(path))) for path in sorted(held_out.glob("*.png"))]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_jobs_have_a_model_for_every_scale(scale: int):
    for model in (FOR_PHOTOGRAPHS, SERVED):
        Restorer.load(model).check(scale, kernel_given=False)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_its_card_says_how_to_load_it(name: str):
    folder = shipped_folder(SCHEME + name)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4e6
    assert f'Restorer.load("{SCHEME}{name}")' in (folder / "README.md").read_text()


@pytest.mark.parametrize(("name", "scale"), [("blind-sr", 2), ("blind-sr", 3), ("blind-sr", 4), ("blind-sr-x2", 2)])
def test_blind_is_far_above_bicubic_and_near_the_true_kernel(photographs: list[np.ndarray], name: str, scale: int):
    model = Restorer.load(SCHEME + name)
    gains, costs = [], []
    for photograph in photographs:
        hr = crop_hr(photograph, scale, PROTOCOL)
        lr = make_lr(hr, KERNEL, scale, 0.0, PROTOCOL)
        found = restore_all(lr, KERNEL, scale, 0.0, {BLIND: model, NONBLIND: model}, PROTOCOL)
        values = {method: measure(estimate, hr, lr, KERNEL, scale, PROTOCOL) for method, estimate in found.items()}
        psnr = {method: value.psnr_rgb for method, value in values.items()}
        gain, cost, correlation = EACH[scale]
        assert psnr[BLIND] > psnr[BICUBIC] + gain, psnr
        assert psnr[BLIND] > psnr[NONBLIND] - cost, psnr
        assert values[BLIND].kernel_correlation > correlation
        gains.append(psnr[BLIND] - psnr[BICUBIC])
        costs.append(psnr[NONBLIND] - psnr[BLIND])
    gain, cost = MEAN[scale]
    assert np.mean(gains) > gain, (scale, gains)
    assert np.mean(costs) < cost, (scale, costs)


def test_every_scale_of_every_model_is_held():
    """The camera models have a test of their own below."""
    scales = {name: set(Restorer.load(SCHEME + name).scales) for name in NAMES}
    assert scales == {
        "blind-sr": {2, 3, 4},
        "blind-sr-x2": {2},
        "blind-sr-camera": {2, 3, 4},
    }


@pytest.mark.parametrize("name", CAMERAS)
def test_a_camera_model_restores_jpegs_better_and_loses_little_elsewhere(photographs: list[np.ndarray], name: str):
    """The true kernel is told, the level is read off the file: it is the restorer that has learned."""
    before, scale = CAMERAS[name]
    models = {"new": Restorer.load(SCHEME + name), "before": Restorer.load(SCHEME + before)}
    gains = {}
    for protocol in (PROTOCOLS["camera-area"], PROTOCOLS["camera-area-q85"]):
        found = []
        for photograph in photographs:
            hr = crop_hr(photograph[:256, :256], scale, protocol)
            lr = make_lr(hr, KERNEL, scale, 0.0, protocol)
            told = protocol.assumed_kernel(KERNEL, scale)
            placed = periodic_extension(lr, -(-told.shape[0] // scale))
            kernel, level = torch.from_numpy(told)[None], assumed_sigma(lr, 0.0, protocol)
            psnr = {}
            for which, model in models.items():
                sr = model.nonblind(model.tensor(placed), kernel, scale, level)[0, :, : hr.shape[0], : hr.shape[1]]
                estimate = Estimate(sr.permute(1, 2, 0).numpy(), None, [])
                psnr[which] = measure(estimate, hr, lr, told, scale, protocol).psnr_rgb
            found.append(psnr["new"] - psnr["before"])
        gains[protocol.name] = np.mean(found)
    assert gains["camera-area"] > -0.2, gains
    assert gains["camera-area-q85"] > 0.2, gains
