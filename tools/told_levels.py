"""Compare the noise level that `auto` passes to the restorer with the best one, in every cell of `camera`.

Cuts of photographs are degraded as the protocols `camera-*` do, with Gaussian and with motion kernels, and restored
with the true composite kernel: at the level that `auto` estimates from pixels and file, and at 0.6, 0.8, 1 and 1.4
times the true error. Results at these fixed levels are kept as JSON and reused; `auto` is measured each time.

python -m tools.told_levels --photographs BSDS400 --cuts 2 --told FILE
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from kernels_bank import sample_gaussian, sample_motion
from kernels_bank.runtime import storage
from kernels_bank.runtime.progress import Progress
from pipeline.evaluation.cases import file_error, make_lr
from pipeline.evaluation.metrics import psnr
from pipeline.evaluation.protocol import PROTOCOLS
from pipeline.inference import Restorer
from pipeline.inference.noise import noise_level
from pipeline.seeds import rng
from pipeline.shipped import FOR_PHOTOGRAPHS

_FACTORS = (0.6, 0.8, 1.0, 1.4)  # tested levels relative to the true error
_ROUNDING = 0.29  # error of rounding to 8 bit, 1/255
_NOISES, _QUALITIES, _SCALES = (0, 2, 5), (None, 95, 85, 70), (2, 4)
_WIDTHS = {2: (0.99, 1.70), 4: (1.4, 2.4)}  # of Gaussians, HR pixels, by scale


class Cell(NamedTuple):
    """Name one cell of `camera`."""

    reduction: str
    noise: int  # 1/255
    quality: int | None
    blur: str
    scale: int

    def __str__(self) -> str:
        jpeg = f"JPEG {self.quality}" if self.quality else "no JPEG"
        return f"{self.reduction}, noise {self.noise}, {jpeg}, {self.blur}, x{self.scale}"


CELLS = [
    Cell(reduction, noise, quality, blur, scale)
    for quality, noise, scale, reduction, blur in itertools.product(
        _QUALITIES, _NOISES, _SCALES, ("area", "bicubic"), ("Gaussian", "motion")
    )
]


def main() -> None:
    """Measure the cells, and print the table, worst cells first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of sharp pictures")
    parser.add_argument("--cuts", type=int, default=2, help="of different pictures, each in every cell")
    parser.add_argument("--every", type=int, default=1, help="one of so many cells; 5 still meets every setting")
    parser.add_argument("--side", type=int, default=160, help="of a cut, HR pixels, a multiple of 8")
    parser.add_argument("--seed", type=int, default=0, help="of cuts, kernels")
    parser.add_argument("--model", default=FOR_PHOTOGRAPHS)
    parser.add_argument("--told", type=Path, required=True, help="JSON of what the told levels gave")
    parser.add_argument("--worst", type=int, default=20, help="cells that are printed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cuts = list(draw_cuts(arguments.photographs, arguments.cuts, arguments.side, arguments.seed))
    restorer = Restorer.load(arguments.model, torch.device("cpu"))
    told = json.loads(arguments.told.read_text()) if arguments.told.exists() else {}
    measured = defaultdict(list)
    cells = CELLS[:: arguments.every]
    with Progress("cells", total=len(cells) * len(cuts), unit="cell") as bar:
        for cell, (number, cut) in itertools.product(cells, enumerate(cuts)):
            case = Case.of(cell, cut, rng(arguments.seed, epoch=number, key=cell.blur, purpose="told-levels"))
            which = f"cut {number} of seed {arguments.seed} and {arguments.side} pixels"
            name = f"{cell}, {which}, {restorer.digest[:8]}, {_FACTORS} times"
            if name not in told:
                told[name] = {f"{level:.2f}": case.restored(restorer, level) for level in case.levels()}
                storage.write_bytes(str(arguments.told), json.dumps(told, indent=1).encode())
            measured[cell].append(judge(case, told[name], case.restored(restorer, None)))
            bar.advance()
    print(table(measured, arguments.worst))


def draw_cuts(folder: Path, count: int, side: int, seed: int) -> list[np.ndarray]:
    """Cut squares out of different pictures that are large enough.

    Args:
        folder: folder of pictures.
        count: number of cuts.
        side: side of each cut, pixels.
        seed: seed of the choice.

    Returns:
        (side, side, 3) uint8 each.
    """
    random = rng(seed, epoch=0, key="cuts", purpose="told-levels")
    paths = sorted(path for path in folder.iterdir() if path.suffix in {".jpg", ".png", ".bmp"})
    cuts: list[np.ndarray] = []
    for number in random.permutation(len(paths)):
        if len(cuts) == count:
            break
        picture = np.asarray(Image.open(paths[number]).convert("RGB"))
        if min(picture.shape[:2]) >= side:
            top, left = (int(random.integers(length - side + 1)) for length in picture.shape[:2])
            cuts.append(np.ascontiguousarray(picture[top : top + side, left : left + side]))
    return cuts


class Case(NamedTuple):
    """Hold a degraded cut and its true values."""

    cell: Cell
    cut: np.ndarray  # (side, side, 3) uint8
    lr: np.ndarray  # (side/s, side/s, 3) uint8
    kernel: np.ndarray  # composite
    error: float  # true RMS error of the LR picture, 1/255
    file_error: float  # error known from its file, [0, 1] scale

    @classmethod
    def of(cls, cell: Cell, cut: np.ndarray, random: np.random.Generator) -> Case:
        """Degrade a cut by the settings of a cell, with a kernel drawn by `random`."""
        clean_protocol = PROTOCOLS[f"camera-{cell.reduction}"]
        protocol = PROTOCOLS[f"camera-{cell.reduction}-q{cell.quality}"] if cell.quality else clean_protocol
        if cell.blur == "motion":
            kernel = sample_motion(1, 25, rng=random)[0]
        else:
            kernel = sample_gaussian(1, 25, rng=random, sigma=_WIDTHS[cell.scale])[0]
        lr = make_lr(cut, kernel, cell.scale, cell.noise / 255, protocol)
        clean = make_lr(cut, kernel, cell.scale, 0.0, clean_protocol)
        pixels = (lr * 255).round().astype(np.uint8)
        error = math.hypot(255 * float(np.sqrt(np.square(lr - clean).mean())), _ROUNDING)
        told = file_error(lr, protocol)
        return cls(cell, cut, pixels, protocol.assumed_kernel(kernel, cell.scale), error, told)

    def levels(self) -> list[float]:
        """Return the tested noise levels, in 1/255."""
        return [factor * self.error for factor in _FACTORS]

    def restored(self, restorer: Restorer, level: float | None) -> float:
        """Restore at a level in 1/255, or None for auto; return the PSNR."""
        sigma = "auto" if level is None else level / 255
        found = restorer.restore(self.lr, self.cell.scale, sigma, self.kernel, file_error=self.file_error)
        return psnr(found.image, self.cut, border=self.cell.scale**2)


def judge(case: Case, told: dict[str, float], auto: float) -> tuple[float, float, float, float]:
    """Return the true error, the level of `auto`, the best tested level, and the dB of `auto` above it."""
    best = max(told, key=told.__getitem__)
    return case.error, 255 * noise_level(case.lr, case.file_error), float(best), auto - told[best]


def table(measured: dict[Cell, list[tuple[float, float, float, float]]], worst: int) -> str:
    """Return a Markdown table of the cells in which `auto` loses most, each averaged over the cuts."""
    means = {cell: np.mean(rows, axis=0) for cell, rows in measured.items()}
    gaps = np.array([mean[3] for mean in means.values()])
    lines = [
        f"{len(gaps)} cells: auto - best {gaps.mean():.2f} dB in the mean, {(gaps < -0.3).sum()} cells below -0.3 dB",
        "",
        "| cell | true error x 255 | auto | best told | auto - best, dB | at worst |",
        "|---|---|---|---|---|---|",
    ]
    for cell in sorted(means, key=lambda cell: float(means[cell][3]))[:worst]:
        numbers = [*means[cell], min(row[3] for row in measured[cell])]
        lines.append(f"| {cell} | " + " | ".join(f"{number:.2f}" for number in numbers) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
