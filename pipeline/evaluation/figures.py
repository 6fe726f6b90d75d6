"""The pictures of an evaluation: PSNR by kernel as bars, and rows of LR | bicubic | blind | non-blind | HR."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluation.cases import BICUBIC, BLIND, NONBLIND, UNALIGNED
from pipeline.evaluation.crops import judged_method, restore_again
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.row import Row
from pipeline.evaluation.summary import Cell
from pipeline.evaluation.wording import noise_text
from pipeline.inference import Restorer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {BICUBIC: "#9aa5b1", BLIND: "#d1495b", NONBLIND: "#2a6f97"}
_OTHERS = ("#66a182", "#edae49", "#8d5a97")
_INK = "#22303c"
_DETAIL = 112  # side of a row's detail, HR pixels


def bars(table: Sequence[Cell], kernels: Mapping[int, np.ndarray], protocol: Protocol) -> bytes:
    """Draw, for each scale and noise level, PSNR of every method over each kernel, the kernels below, as PNG."""
    panels = list(dict.fromkeys((cell.scale, cell.sigma) for cell in table))
    figure = _figure(max(7.0, 0.85 * len(kernels[table[0].scale])), 3.4 * len(panels))
    for number, (scale, sigma) in enumerate(panels):
        axis = figure.add_subplot(len(panels), 1, number + 1)
        shown = [c for c in table if (c.scale, c.sigma) == (scale, sigma) and c.method != UNALIGNED]
        width = 0.8 / len(shown)
        others = iter(_OTHERS * len(shown))
        lowest = np.inf
        for i, cell in enumerate(shown):
            values = np.array(cell.by_kernel[protocol.headline], dtype=float)
            lowest = min(lowest, float(values.min()))
            places = np.arange(len(values)) + (i - (len(shown) - 1) / 2) * width
            colour = COLOURS.get(cell.method) or next(others)
            axis.bar(places, values, width, color=colour, label=cell.method)
            for place, value in zip(places, values, strict=True):
                axis.text(place, value + 0.05, f"{value:.1f}", ha="center", va="bottom", fontsize=5.5, color=_INK)
        axis.set_ylim(bottom=np.floor(lowest - 1.5))
        axis.set_xlim(-0.6, len(kernels[scale]) - 0.4)
        axis.set_title(f"x{scale}, {noise_text(sigma)}, protocol {protocol.name}", fontsize=9, color=_INK, loc="left")
        axis.set_ylabel("PSNR (dB)", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
        axis.set_xticks([])
        axis.legend(fontsize=7, frameon=False, ncols=len(shown), loc="lower right", bbox_to_anchor=(1, 1))
        for i, kernel in enumerate(kernels[scale]):
            inset = axis.inset_axes((i - 0.3, -0.24, 0.6, 0.2), transform=axis.get_xaxis_transform())
            _show_kernel(inset, kernel)
            inset.set_xlabel(str(i + 1), fontsize=7, labelpad=1)
    return _png(figure)


def samples(
    rows: Sequence[Row],
    kernels: Mapping[int, np.ndarray],
    chosen: Sequence[int],
    models: Mapping[str, Restorer],
    protocol: Protocol,
) -> bytes:
    """Draw a row for each of the kernels `chosen`: a detail of LR and of every method, and the kernels, as PNG.

    A kernel is shown with the image of median PSNR, which is typical. The detail is where the HR image has the most
    structure. The rows come from the first scale and noise level of the evaluation.

    Args:
        rows: the results.
        kernels: kernels (N, k, k) by scale.
        chosen: numbers of the kernels, from 1.
        models: models by method name.
        protocol: protocol of the evaluation.
    """
    setting = rows[0].setting
    method = judged_method(models)
    columns = [BICUBIC, *models]
    figure = _figure(1.75 * (len(columns) + 4), 1.95 * len(chosen))
    axes = figure.subplots(len(chosen), len(columns) + 4, squeeze=False)
    for line, number in zip(axes, chosen, strict=True):
        of_kernel = [r for r in rows if (r.setting, r.case.kernel, r.method) == (setting, number, method)]
        typical = sorted(of_kernel, key=lambda r: r.psnr(protocol.headline))[len(of_kernel) // 2]
        shown = restore_again(typical.case, rows, kernels, models, protocol, _DETAIL)
        _show(line[0], shown.lr_part(), "LR")
        for axis, name in zip(line[1:], columns, strict=False):
            _show(axis, shown.part(shown.estimates[name].sr), f"{name} {shown.psnr[name]:.2f} dB")
        _show(line[-3], shown.part(shown.hr), "HR")
        _show_kernel(line[-2], shown.kernel, f"true kernel {number}")
        if (estimated := shown.estimates[method].kernel) is not None and method == BLIND:
            _show_kernel(line[-1], estimated, "estimated")
        else:
            line[-1].set_axis_off()
    return _png(figure)


def _show(axis: Axes, image: np.ndarray, title: str) -> None:
    axis.imshow(image, interpolation="nearest")
    axis.set_title(title, fontsize=7, color=_INK, pad=2)
    axis.set_axis_off()


def _show_kernel(axis: Axes, kernel: np.ndarray, title: str | None = None) -> None:
    axis.imshow(np.sqrt(np.maximum(kernel, 0) / kernel.max()), cmap="magma", interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    if title:
        axis.set_title(title, fontsize=7, color=_INK, pad=2)


def _figure(width: float, height: float) -> Figure:
    """Make a figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
