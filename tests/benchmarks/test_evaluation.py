"""A case of the evaluation against a plain loop: `make bench`; ratios are read within the group.

The plain loop is what published scripts do: SciPy's blur of the 8-bit image, the network in its published form, one
image at a time. Its first form computes nothing but the RGB PSNR of one method; its second measures what ours does
for all methods. Times are CPU time of one thread: cases are independent tasks, so images a second scale with cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from kernels_bank import benchmark_kernels
from pipeline.evaluation.baselines import bicubic, bicubic_unaligned
from pipeline.evaluation.cases import NONBLIND, crop_hr, make_lr, measure, restore_all
from pipeline.evaluation.metrics import luma, psnr_shifted
from pipeline.evaluation.protocol import PROTOCOLS
from pipeline.inference import Restorer
from pipeline.inference.allocator import keep_freed_memory
from pipeline.model import USRNet
from tests.published import TINY, PublishedUSRNet

pytestmark = pytest.mark.usefixtures("one_thread")
SCALE, TABLE1 = 2, PROTOCOLS["usrnet-table1"]
BORDER = TABLE1.border_pixels(SCALE)
INSIDE = slice(BORDER, -BORDER)
KERNEL = benchmark_kernels()[9]


@pytest.fixture(scope="module")
def hr() -> np.ndarray:
    """A photograph of the size of CBSD68's."""
    return crop_hr(data.coffee()[60:348, 60:540], SCALE, TABLE1)


def plain(hr: np.ndarray, network: PublishedUSRNet) -> tuple[np.ndarray, np.ndarray]:
    """The LR and the restored image, 8 bit."""
    blurred = ndimage.convolve(hr, KERNEL.astype(np.float64)[..., None], mode="wrap")[::SCALE, ::SCALE]
    lr = torch.from_numpy(blurred.astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        sr = network(lr, torch.from_numpy(KERNEL)[None], SCALE, torch.zeros(1))
    return blurred, (sr[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()


def plain_psnr(hr: np.ndarray, network: PublishedUSRNet) -> float:
    return float(peak_signal_noise_ratio(hr[INSIDE, INSIDE], plain(hr, network)[1][INSIDE, INSIDE]))


def plain_measures(hr: np.ndarray, network: PublishedUSRNet) -> None:
    blurred, sr = plain(hr, network)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    for enlarge in (bicubic, bicubic_unaligned, lambda *_: sr):
        image = np.asarray(enlarge(blurred, SCALE)).clip(0, 255).round().astype(np.uint8)
        a, b = image[INSIDE, INSIDE], hr[INSIDE, INSIDE]
        peak_signal_noise_ratio(b, a)
        peak_signal_noise_ratio(luma(b), luma(a), data_range=255)
        structural_similarity(b, a, channel_axis=2, **settings)
        structural_similarity(luma(b), luma(a), **settings)
        psnr_shifted(image, hr, border=BORDER)


def ours(hr: np.ndarray, model: Restorer) -> float:
    lr = make_lr(hr, KERNEL, SCALE, 0.0, TABLE1)
    found = restore_all(lr, KERNEL, SCALE, 0.0, {NONBLIND: model}, TABLE1)
    values = {name: measure(estimate, hr, lr, KERNEL, SCALE, TABLE1) for name, estimate in found.items()}
    return float(values[NONBLIND].psnr_rgb)


@pytest.mark.benchmark(group="a case, 480 x 288, x2, tiny", timer=time.process_time, min_rounds=3, warmup=True)
@pytest.mark.parametrize("form", ["plain, RGB PSNR only", "plain, all measures", "ours, all measures"])
def test_a_case(benchmark: Callable, form: str, hr: np.ndarray) -> None:
    torch.manual_seed(0)
    published = PublishedUSRNet(TINY).eval()
    network = USRNet(TINY)
    network.load_state_dict(published.state_dict())
    model = Restorer(network, uri="", digest="", device=torch.device("cpu"))
    # The two must agree before their times may be compared.
    assert ours(hr, model) == pytest.approx(plain_psnr(hr, published), abs=0.05)
    match form:
        case "plain, RGB PSNR only":
            benchmark(plain_psnr, hr, published)
        case "plain, all measures":
            benchmark(plain_measures, hr, published)
        case _:
            # As in the evaluation's tasks, but for the large pages, which torch had to be asked for at its first
            # tensor. It holds for the rest of the process, so this form is the last.
            keep_freed_memory()
            benchmark(ours, hr, model)
