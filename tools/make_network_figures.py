"""The pictures of docs/network.md.

python -m tools.make_network_figures draws the network, measures the data step and shows the kernel after each step of
the shipped model on a photograph that it was not trained on.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

from kernels_bank import sample_gaussian, sample_motion
from pipeline.data.photographs import HELD_OUT, copy_photographs
from pipeline.degrade import degrade, quantize
from pipeline.evaluation.metrics import compare_kernels, psnr_shifted
from pipeline.images.decode import decode_image
from pipeline.model import BlindUSRNet, data_step
from pipeline.model.weights import load_model
from pipeline.model_config import ModelConfig
from pipeline.shipped import shipped_folder
from tests.published import published_data_step

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
DATA, PRIOR, KERNEL, PLAIN = "#cfe3f5", "#d8ecd0", "#f6dfc2", "#eeeeee"


def main() -> None:
    """Draw all pictures."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    matplotlib.use("Agg")
    torch.manual_seed(0)
    PICTURES.mkdir(exist_ok=True)
    draw_network(ModelConfig(), PICTURES / "network.png")
    draw_data_step_error(PICTURES / "data-step-error.png")
    draw_alternation(shipped_folder("shipped:blind-sr-x2"), PICTURES / "alternation.png")


def box(axes: Axes, x: float, y: float, text: str, colour: str, width: float = 1.7, height: float = 0.9) -> None:
    """Draw a labelled box centred at (x, y).

    Args:
        axes: axes to draw on.
        x: x coordinate of the centre.
        y: y coordinate of the centre.
        text: label.
        colour: fill colour.
        width: width in data units.
        height: height in data units.
    """
    shape = FancyBboxPatch(
        (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.02", fc=colour, ec="#444"
    )
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", fontsize=8)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", bend: float = 0.0) -> None:
    """Draw an arrow, with a label at its middle.

    Args:
        axes: axes to draw on.
        start: start of the arrow.
        end: end of the arrow.
        text: label.
        bend: curvature.
    """
    style = f"arc3,rad={bend}"
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, connectionstyle=style, color="#444"))
    if text:
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.16
        axes.text(*middle, text, ha="center", fontsize=8, backgroundcolor="white" if start[1] != end[1] else "none")


def draw_network(config: ModelConfig, path: Path) -> None:
    """Draw the interleaved schedule above one unfolding's prior, with the numbers of the config."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(12, 6.4), height_ratios=(1.15, 1))
    parts = config.kernel.rounds + 1
    step = 9.6 / parts
    box(above, 0.3, 2, "LR image y\nscale s, noise σ", PLAIN, 1.3)
    box(above, 2.0, 3.5, f"initial kernel k₀\n({config.kernel.initial})", KERNEL, 1.6)
    box(above, 2.0, 0.5, f"x₀: {config.restorer.x0}", PLAIN, 1.3, 0.6)
    arrow(above, (0.6, 2.5), (1.25, 3.3))
    arrow(above, (0.6, 1.5), (1.4, 0.7))
    for i in range(parts):
        x = 4.1 + i * step
        count = (2 * (i + 1) * config.restorer.unfoldings + parts) // (2 * parts) - (
            2 * i * config.restorer.unfoldings + parts
        ) // (2 * parts)
        box(above, x, 0.5, f"{count} x (data step, prior)", DATA, 1.9, 0.7)
        arrow(above, (x - step + 0.95, 0.5) if i else (2.65, 0.5), (x - 0.95, 0.5), f"x, round {i - 1}" if i else "")
        if i:
            box(above, x - step / 2 + 0.3, 3.5, f"estimator\nk{'₀₁₂₃₄₅₆₇₈'[i]} = decode(code + change)", KERNEL, 2.5)
            arrow(above, (x - step + 0.3, 0.85), (x - step / 2 - 0.3, 3.05), "x, y   ")
            arrow(above, (x - step / 2 + 0.9, 3.05), (x, 0.85))
        else:
            arrow(above, (2.4, 3.05), (x - 0.2, 0.85), "k₀")
    end = 4.1 + (parts - 1) * step
    arrow(above, (end + 0.95, 0.5), (end + 1.75, 0.5))
    box(above, end + 2.3, 0.5, "HR image", PLAIN, 1.1, 0.6)
    above.set_title(
        f"Alternation, schedule 'interleaved': {config.restorer.unfoldings} unfoldings in {parts} parts, "
        f"{config.kernel.rounds} estimates between them ('rounds' runs all unfoldings for every kernel)",
        fontsize=9,
    )
    levels = [0.0, 1.4, 2.8, 4.2, 5.7, 7.1, 8.5, 9.9]
    depth = [0, 1, 2, 3, 3, 2, 1, 0]
    blocks = config.restorer.residual_blocks
    names = (
        ["head 3x3"] + [f"{blocks} blocks\n2x2, stride 2"] * 3 + [f"{blocks} blocks"] + [f"2x2 up\n{blocks} blocks"] * 3
    )
    for i, (x, level) in enumerate(zip(levels, depth, strict=True)):
        y = 3 - level
        box(below, 1.4 + x, y, f"{names[i]}\n{config.restorer.widths[level]} ch", PRIOR, 1.05, 0.8)
        if i:
            arrow(below, (1.4 + levels[i - 1] + 0.53, 3 - depth[i - 1]), (1.4 + x - 0.53, y))
    for left, right in ((0, 7), (1, 6), (2, 5)):
        arrow(below, (1.95 + levels[left], 3.25 - depth[left]), (0.85 + levels[right], 3.25 - depth[right]), bend=-0.06)
    arrow(below, (1.95 + levels[3], 0.3), (0.88 + levels[5], 0.85), bend=-0.25)  # around the body
    box(below, -0.4, 3, "data step's z\nβᵢ plane", DATA, 1.2)
    arrow(below, (0.2, 3), (0.87, 3))
    box(below, 12.9, 3, "tail 3x3\nxᵢ", PRIOR, 1.0)
    arrow(below, (11.85, 3), (12.38, 3))
    below.set_title("Prior: ResUNet, skips are additions, no biases; one set of weights for all unfoldings", fontsize=9)
    below.text(
        2.2,
        -0.85,
        "data step: z = x + Bᴴ Sᵀ (D + αᵢ)⁻¹ (y − S B x),   D = mean of |F(k)|² over the s x s aliases;"
        "   (αᵢ, βᵢ) = MLP(σ, s)",
        fontsize=9,
    )
    for axes, top, bottom in ((above, 4.2, -0.1), (below, 3.9, -1.0)):
        axes.set_xlim(-1.1, 13.7)
        axes.set_ylim(bottom, top)
        axes.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_data_step_error(path: Path) -> None:
    """Draw the relative float32 error of both forms over alpha, on a degraded photograph, against float64."""
    hr = photograph(96)[None].double()
    kernel = torch.from_numpy(sample_gaussian(1, 25, rng=np.random.default_rng(0))).double()
    y = degrade(hr, kernel, 2)
    x = F.interpolate(y, scale_factor=2, mode="nearest")
    alphas = torch.logspace(-8, 0, 17, dtype=torch.float64)
    figure, axes = plt.subplots(figsize=(6, 3.4))
    for form, label in ((published_data_step, "published: complex FFTs, / α"), (data_step, "residual form: real FFTs")):
        errors = []
        for alpha in alphas:
            weight = alpha.reshape(1, 1, 1, 1)
            exact = data_step(x, y, kernel, weight, 2)
            found = form(x.float(), y.float(), kernel.float(), weight.float(), 2).double()
            errors.append(float((found - exact).norm() / exact.norm()))
        axes.loglog(alphas, errors, "o-", markersize=3, label=label)
        print(label, {f"{a:.0e}": f"{e:.1e}" for a, e in zip(alphas.tolist(), errors, strict=True)})
    axes.axvspan(2e-6, 1e-3, color="#f6dfc2", alpha=0.6, label="αs of the published weights at σ = 0")
    axes.set_xlabel("α")
    axes.set_ylabel("relative error in float32")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def photograph(side: int, top: int = 0, left: int = 0) -> Tensor:
    """Cut (3, side, side) float32 in [0, 1] from a photograph that the quickstart holds out."""
    with tempfile.TemporaryDirectory() as folder:
        _, held_out = copy_photographs(Path(folder))
        image = decode_image((held_out / next(iter(HELD_OUT))).read_bytes())
    crop = image[top : top + side, left : left + side]
    return torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1).float() / 255


def draw_alternation(folder: Path, path: Path) -> None:
    """Draw the kernel and the restored image from the spectral start over the kernel steps, next to the truth.

    The examples are a Gaussian, for which the start is right, and two motion kernels, whose direction a spectrum does
    not show.
    """
    model = load_model(folder)
    if not isinstance(model, BlindUSRNet) or not model.config.kernel.steps:
        raise SystemExit(f"{folder}: not a blind model with kernel steps")
    model.eval()
    scale, side = model.config.scales[0], model.kernel_size
    hr = photograph(256, top=40, left=100)[None]
    motion = sample_motion(2, side, rng=np.random.default_rng(3), extent=(12.0, 16.0))
    gaussian = sample_gaussian(1, side, rng=np.random.default_rng(5), sigma=(0.9, 3.0))
    shown = [0, *range(2, model.config.kernel.steps + 1, 2)]
    figure, axes = plt.subplots(6, len(shown) + 2, figsize=(2.1 * (len(shown) + 2), 13))
    for number, true in enumerate(torch.from_numpy(np.concatenate((gaussian, motion))).float()[:, None]):
        above, below = axes[2 * number], axes[2 * number + 1]
        lr = quantize(degrade(hr, true, scale), "round")
        with torch.inference_mode():
            start = model.initial(lr, scale, 0.0).blur
            kernels = [start, *model.refine(lr, start, scale, torch.zeros(1))]
            refined = bool(model.infer(lr, scale, 0.0).kernel_round)
            images = {i: model.restore(lr, kernels[i], scale, 0.0) for i in shown}
            best = model.restore(lr, true, scale, 0.0)
        print(f"row {number}: the guard keeps the {'refined' if refined else 'spectral'} kernel")
        above[0].axis("off")
        show(below[0], F.interpolate(lr, scale_factor=scale), "LR")
        for column, (i, sr) in enumerate(images.items(), start=1):
            title = f"after {i} steps" if i else "spectral start"
            kept = i == (model.config.kernel.steps if refined else 0)
            error = compare_kernels(kernels[i][0].numpy(), true[0].numpy()).correlation
            show_kernel(above[column], kernels[i][0], f"{title}: match {error:.2f}", float(true.max()))
            show(below[column], sr, f"{_shifted_psnr(sr, hr):.2f} dB{', kept by the guard' if kept else ''}")
        show_kernel(above[-1], true[0], "true kernel", float(true.max()))
        show(below[-1], best, f"{_shifted_psnr(best, hr):.2f} dB")
    figure.tight_layout()
    figure.savefig(path, dpi=75)
    plt.close(figure)


def _shifted_psnr(sr: Tensor, hr: Tensor) -> float:
    """Return the PSNR after the best shift, which no blind method can know."""
    image, truth = (x[0].clamp(0, 1).permute(1, 2, 0).numpy() for x in (sr, hr))
    return psnr_shifted(image, truth, border=8).psnr


def show(axes: Axes, image: Tensor, title: str) -> None:
    """Show one image (1, 3, H, W)."""
    axes.imshow(image[0].clamp(0, 1).permute(1, 2, 0).numpy())
    axes.set_title(title, fontsize=8)
    axes.axis("off")


def show_kernel(axes: Axes, kernel: Tensor, title: str, largest: float) -> None:
    """Show a kernel (k, k), with one scale for all kernels of a row.

    Args:
        axes: axes to draw on.
        kernel: (k, k).
        title: title above it.
        largest: value drawn as white.
    """
    axes.imshow(kernel.numpy(), cmap="gray", vmin=0, vmax=largest)
    axes.set_title(title, fontsize=8)
    axes.axis("off")


if __name__ == "__main__":
    main()
