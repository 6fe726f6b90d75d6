"""Pictures of a bank, written beside its manifest.

preview.png         kernels of each family
distributions.png   what was drawn: sigmas and angles, extents, measured widths
codec.png           the PCA spectrum, and what each family loses with fewer components
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from kernels_bank.codec import KernelCodec
from kernels_bank.families import draw_range
from kernels_bank.runtime import storage
from kernels_bank.spec import Family, KernelBankSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Kernels of each family that are looked at; they are drawn again, which is cheaper than reading them.
_SAMPLE = 1024
_INK = "#22303c"
_COLOURS: dict[Family, str] = {"gaussian": "#2a6f97", "motion": "#d1495b", "disk": "#66a182", "delta": "#8d96a3"}

Samples = dict[Family, tuple[np.ndarray, dict[str, np.ndarray]]]


def write_previews(spec: KernelBankSpec, codec: KernelCodec, uri: str) -> None:
    """Write the three pictures into the bank's folder."""
    samples = {f: draw_range(spec, f, 0, min(n, _SAMPLE)) for f, n in spec.counts.items() if n}
    pictures = {
        "preview.png": mosaics(samples),
        "distributions.png": distributions(samples),
        "codec.png": losses(samples, codec),
    }
    for name, figure in pictures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        storage.write_bytes(storage.join(uri, name), buffer.getvalue())


def mosaics(samples: Samples, rows: int = 8, columns: int = 16) -> Figure:
    """A grid of kernels of each family, each kernel scaled to its own maximum."""
    shown = {family: kernels for family, (kernels, _) in samples.items() if family != "delta" or len(samples) == 1}
    figure, axes = _panels(len(shown), columns=2, width=6.4, height=3.5)
    for axis, (family, kernels) in zip(axes, shown.items(), strict=False):
        side = kernels.shape[-1] + 2
        grid = np.full((rows * side, columns * side), np.nan)
        for i, kernel in enumerate(kernels[: rows * columns]):
            top, left = (i // columns) * side + 1, (i % columns) * side + 1
            grid[top : top + side - 2, left : left + side - 2] = np.sqrt(kernel / kernel.max())
        axis.imshow(grid, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(f"{family} kernels (square root, each to its maximum)", fontsize=9, color=_INK)
        axis.set_axis_off()
    return figure


def distributions(samples: Samples) -> Figure:
    """What was drawn, and how wide the kernels came out."""
    panels: list[tuple[Family, str, np.ndarray]] = []
    for family, (_, drawn) in samples.items():
        labels = {"extent": "extent (px)", "memory": "memory (exposures)", "angle": "angle (degrees)"}
        panels += [(family, labels.get(name, name.replace("_", " ") + " (px)"), v) for name, v in drawn.items()]
    widths = {family: _axes_of(kernels) for family, (kernels, _) in samples.items() if family != "delta"}
    figure, axes = _panels(len(panels) + 1, columns=3, width=4.2, height=2.5)
    for axis, (family, label, values) in zip(axes, panels, strict=False):
        axis.hist(values, bins=32, color=_COLOURS[family], edgecolor="white", linewidth=0.4)
        _label(axis, f"{family}: {label}", "", "kernels")
    for family, (major, minor) in widths.items():
        axes[len(panels)].scatter(major, minor, s=3, alpha=0.5, color=_COLOURS[family], label=family, linewidths=0)
    _label(axes[len(panels)], "measured standard deviation", "along (px)", "across (px)")
    if widths:
        axes[len(panels)].legend(fontsize=7, markerscale=3, frameon=False)
    return figure


def losses(samples: Samples, codec: KernelCodec) -> Figure:
    """The PCA spectrum and, by number of components, the decoded kernels' error."""
    figure, axes = _panels(2, columns=2, width=5.6, height=3.4)
    share = 1 - np.cumsum(codec.spectrum) / max(float(codec.spectrum.sum()), 1e-300)
    axes[0].semilogy(np.arange(1, len(share) + 1), np.maximum(share, 1e-7), color=_INK)
    axes[0].axvline(codec.components, color="#d1495b", linewidth=1, linestyle="--")
    axes[0].set_ylim(1e-6, 1)
    _label(axes[0], f"variance left out ({codec.components} components kept)", "components", "share of the variance")
    counts = sorted(
        {c for c in (1, 2, 4, 7, 10, 16, 24, 40, 64, 110, 160) if c < codec.components} | {codec.components}
    )
    for family, (kernels, _) in samples.items():
        errors = [relative_error(kernels, codec.truncated(count)).mean() for count in counts]
        axes[1].plot(counts, errors, marker="o", markersize=3, color=_COLOURS[family], label=family)
    axes[1].set_xscale("log")
    axes[1].set_ylim(bottom=0)
    axes[1].legend(fontsize=8, frameon=False)
    _label(axes[1], "relative L2 error of the decoded kernel", "components", "mean error")
    return figure


def relative_error(kernels: np.ndarray, codec: KernelCodec) -> np.ndarray:
    """(N,): |decoded - kernel| / |kernel|, Euclidean."""
    difference = codec.decode(codec.encode(kernels)) - kernels
    norm = np.sqrt((kernels * kernels).sum(axis=(1, 2)))
    return np.asarray(np.sqrt((difference * difference).sum(axis=(1, 2))) / norm)


def _axes_of(kernels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations (N,) along and across the principal axis of each kernel, in pixels."""
    axis = np.arange(kernels.shape[-1]) - kernels.shape[-1] // 2
    rows, columns = kernels.sum(axis=2), kernels.sum(axis=1)
    y, x = rows @ axis, columns @ axis
    yy, xx = rows @ axis**2 - y * y, columns @ axis**2 - x * x
    xy = (kernels @ axis) @ axis - x * y
    spread = np.sqrt((xx - yy) ** 2 / 4 + xy * xy)
    middle = (xx + yy) / 2
    return np.sqrt(np.maximum(middle + spread, 0)), np.sqrt(np.maximum(middle - spread, 0))


def _panels(count: int, *, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels on a grid; drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes


def _label(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=9, color=_INK)
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
