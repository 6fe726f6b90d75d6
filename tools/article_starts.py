"""Measure what DAN's estimator adds to three starts: a delta, the spectral kernel, and the one after kernel steps.

The article's trained networks go on from each start with their own rounds; PSNR after the best shift, protocol
`usrnet-table1` at x2. It prints a table.

python -m tools.article_starts --runs runs --images CBSD68 --kernels kernels_12.mat --every 17
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch

from kernels_bank import load_kernels
from kernels_bank.runtime import storage
from kernels_bank.runtime.progress import Progress
from pipeline.data.sources import list_sources
from pipeline.evaluation.cases import crop_hr, make_lr
from pipeline.evaluation.metrics import psnr_shifted
from pipeline.evaluation.protocol import PROTOCOLS
from pipeline.images.decode import decode_image
from pipeline.inference import Restorer
from pipeline.model import BlindUSRNet
from pipeline.model.initial import Initial

SPECTRAL = "shipped:blind-sr-x2"
_SCALE, _NOISES = 2, (0.0, 2.55 / 255)
_KERNELS = {"gaussian": (2, 5, 8), "mixed": (2, 5, 8, 9, 10, 11, 12)}  # numbers from 1
_PROTOCOL = PROTOCOLS["usrnet-table1"]


class Found(NamedTuple):
    """Hold the PSNR of a start, of the first round from it without the guard, and of the guarded result."""

    start: float
    first: float
    guarded: float


def main() -> None:
    """Print a line for each experiment, group of kernels, noise level and start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", required=True, help="folder of the runs article-*-x2")
    parser.add_argument("--images", required=True, help="folder of sharp photographs")
    parser.add_argument("--kernels", required=True, help="the twelve kernels: a .mat file")
    parser.add_argument("--every", type=int, default=17, help="take every so many photographs")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kernels = load_kernels(given.kernels)
    sources = list(list_sources(given.images, nested=False))[:: given.every]
    images = [crop_hr(decode_image(storage.read_bytes(source.uri)), _SCALE, _PROTOCOL) for source in sources]
    shipped = Restorer.load(SPECTRAL, precision=given.precision)
    cases = [(kind, number) for kind, numbers in _KERNELS.items() for number in numbers]
    found: dict[tuple[str, str, float, str], list[Found]] = defaultdict(list)
    with Progress("start", len(cases) * len(images) * len(_NOISES), "case") as bar:
        for kind, of_kind in itertools.groupby(cases, key=lambda case: case[0]):
            trained = Restorer.load(f"{given.runs}/article-{kind}-x{_SCALE}/model", precision=given.precision)
            for (_, number), hr, noise in itertools.product(list(of_kind), images, _NOISES):
                lr = make_lr(hr, kernels[number - 1], _SCALE, noise, _PROTOCOL)
                for start, values in compare(trained, shipped, hr, lr, noise).items():
                    found[kind, "Gaussian" if number < 9 else "motion", noise, start].append(values)
                bar.advance()
    print("| experiment | kernels | noise x 255 | start | start alone | first round | guarded |")
    print("|---|---|---|---|---|---|---|")
    for (kind, group, noise, start), values in found.items():
        means = " | ".join(f"{value:.2f}" for value in np.mean(values, axis=0))
        print(f"| {kind} | {group} | {255 * noise:.2f} | {start} | {means} |")


def compare(trained: Restorer, shipped: Restorer, hr: np.ndarray, lr: np.ndarray, sigma: float) -> dict[str, Found]:
    """Restore an LR image by an article's network from each start.

    Args:
        trained: the article's network.
        shipped: a model with a spectral initial kernel and kernel steps.
        hr: (H, W, 3) uint8, the true image.
        lr: (h, w, 3) float32, the degraded image.
        sigma: noise level of `lr`.
    """
    network, image = trained.network, trained.tensor(lr)
    assert isinstance(network, BlindUSRNet)
    spectral = shipped.initial(lr, _SCALE, sigma)
    refined = shipped.blind(image, _SCALE, sigma, first=spectral)
    starts = {
        "delta": trained.initial(lr, _SCALE, sigma),
        "spectral": start_from(network, spectral.blur),
        "kernel steps": start_from(network, refined.kernel),
    }
    found = {}
    for name, first in starts.items():
        out = trained.blind(image, _SCALE, sigma, first=first)
        found[name] = Found(*(_score(sr, hr) for sr in (out.rounds[0].sr, out.rounds[1].sr, out.sr)))
    return found


def _score(sr: torch.Tensor, hr: np.ndarray) -> float:
    picture = (sr[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy()
    return psnr_shifted(picture, hr, border=_PROTOCOL.border_pixels(_SCALE)).psnr


def start_from(network: BlindUSRNet, kernel: torch.Tensor) -> Initial:
    """Cut kernels (B, k, k) to a network's kernel size, at most k, and encode them with its code."""
    margin = (kernel.shape[-1] - network.kernel_size) // 2
    cut = kernel[:, margin : kernel.shape[-2] - margin, margin : kernel.shape[-1] - margin]
    cut = cut / cut.sum((-2, -1), keepdim=True)
    with torch.inference_mode():
        return Initial(cut, network.encode(cut), None)


if __name__ == "__main__":
    main()
