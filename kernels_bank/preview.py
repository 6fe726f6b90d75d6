"""Pictures of a bank, written next to its manifest.

preview.png         kernels of each family, sorted by width
distributions.png   the drawn parameters, and the resulting widths of the kernels
codec.png           the PCA spectrum, its first directions, and each family's loss with fewer components
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels_bank.codec import KernelCodec
from kernels_bank.codec_quality import Loss, Samples, decoded_psnr
from kernels_bank.runtime import storage, uris
from kernels_bank.spec import COMPOSITES, Family

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = ("preview.png", "distributions.png", "codec.png")
_INK = "#22303c"
_COLOURS: dict[Family, str] = {
    "gaussian": "#2a6f97",
    "motion": "#d1495b",
    "disk": "#66a182",
    "delta": "#8d96a3",
    "gaussian_reduced": "#14405c",
    "motion_reduced": "#8a1f33",
    "reduction": "#e09f3e",
}
_DRAWN = {
    "sigma_along": "sigma along the axis (px)",
    "sigma_across": "sigma across the axis (px)",
    "angle": "angle of the axis (degrees)",
    "extent": "extent of the path (px)",
    "memory": "memory of the force (exposures)",
    "radius": "radius (px)",
}


def write_previews(samples: Samples, full: KernelCodec, kept: int, losses: list[Loss], uri: str) -> None:
    """Write the pictures into the bank's folder.

    Args:
        samples: kernels and drawn parameters of each family.
        full: the codec with all components.
        kept: length of the bank's code.
        losses: losses of the codec by length.
        uri: the bank's folder.
    """
    figures = (mosaics(samples), distributions(samples), codec_sheet(samples, full, kept, losses))
    for name, figure in zip(PICTURES, figures, strict=True):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        storage.write_bytes(uris.join(uri, name), buffer.getvalue())


def mosaics(samples: Samples, rows: int = 8, columns: int = 14) -> Figure:
    """Draw a grid of kernels of each family from narrow to wide, each scaled to its own maximum."""
    shown = _worth_a_look(samples)
    figure, axes = _panels(len(shown), columns=3 if len(shown) == 3 else 2, width=6.6, height=4.6)
    for axis, (family, (kernels, drawn)) in zip(axes, shown.items(), strict=False):
        chosen = kernels[: rows * columns]
        narrow_to_wide = np.argsort(np.hypot(*_axes_of(chosen)), kind="stable")
        _tiles(axis, chosen[narrow_to_wide], min(columns, len(chosen)), lobes=family in COMPOSITES)
        ranges = [f"{_DRAWN[name]}: {round(v.min(), 2):g} to {round(v.max(), 2):g}" for name, v in drawn.items()]
        title = f"{family.replace('_', ', ')} kernels, {kernels.shape[1]} x {kernels.shape[2]}, from narrow to wide"
        axis.set_title(title, fontsize=11, color=_INK)
        axis.set_xlabel("\n".join(ranges), fontsize=8, color=_INK)
    return figure


def distributions(samples: Samples) -> Figure:
    """Draw the distributions of the parameters and of the kernels' widths."""
    panels = [(family, name, values) for family, (_, drawn) in samples.items() for name, values in drawn.items()]
    figure, axes = _panels(len(panels) + 1, columns=3, width=4.2, height=2.6)
    for axis, (family, name, values) in zip(axes, panels, strict=False):
        # Logarithmic, since times span decades.
        edges = np.geomspace(values.min(), values.max(), 33) if name == "memory" else np.linspace(*_ends(values), 33)
        axis.hist(values, bins=edges.tolist(), color=_COLOURS[family], edgecolor="white", linewidth=0.4)
        axis.set_xscale("log" if name == "memory" else "linear")
        _label(axis, f"{family}: {_DRAWN[name]}", "", f"of {len(values):,} kernels")
    scatter = axes[len(panels)]
    for family, (kernels, _) in samples.items():
        if family != "delta":
            scatter.scatter(*_axes_of(kernels), s=3, alpha=0.4, color=_COLOURS[family], label=family, linewidths=0)
    _label(scatter, "measured standard deviation", "along (px)", "across (px)")
    if scatter.collections:
        scatter.legend(fontsize=7, markerscale=3, frameon=False, loc="upper left")
    return figure


def codec_sheet(samples: Samples, full: KernelCodec, kept: int, losses: list[Loss]) -> Figure:
    """Draw the spectrum, the losses by number of components, the first directions, and decoded kernels.

    Args:
        samples: kernels of each family.
        full: the codec with all components.
        kept: length of the bank's code.
        losses: losses of the codec by length.
    """
    figure, axes = _panels(4, columns=2, width=6.6, height=3.7)
    spectrum, psnr, directions, decoded = axes
    left_out = np.cumsum(full.spectrum[::-1])[::-1] / max(float(full.spectrum.sum()), 1e-300)
    spectrum.semilogy(np.arange(len(left_out)), np.maximum(left_out, 1e-7), color=_INK)
    spectrum.axvline(kept, color=_COLOURS["motion"], linewidth=1, linestyle="--")
    spectrum.set_ylim(1e-6, 1)
    for loss in losses:
        left = 1 - loss.explained_variance
        spectrum.plot(loss.components, max(left, 1e-7), "o", markersize=4, color=_INK)
        spectrum.annotate(
            f" {loss.components}: {loss.explained_variance:.1%}", (loss.components, left), fontsize=7, va="bottom"
        )
    _label(spectrum, f"variance left out; this bank's code has {kept} components", "components", "share")

    between = [c for c in (1, 2, 4, 16, 40, 85, 160) if c <= full.components and c != kept]
    for family, (kernels, _) in samples.items():
        measured = {loss.components: loss.psnr[family] for loss in losses}
        curve = measured | {c: float(decoded_psnr(kernels, full.truncated(c)).mean()) for c in between}
        psnr.plot(sorted(curve), [curve[c] for c in sorted(curve)], color=_COLOURS[family], label=family)
        psnr.plot(list(measured), list(measured.values()), "o", markersize=4, color=_COLOURS[family])
        for length, db in measured.items():
            psnr.text(length, db, f"{db:.1f} ", fontsize=7, ha="right", va="bottom", color=_COLOURS[family])
    psnr.set_xscale("log")
    psnr.set_xticks([loss.components for loss in losses], [str(loss.components) for loss in losses])
    psnr.minorticks_off()
    psnr.legend(fontsize=8, frameon=False, loc="upper left")
    _label(psnr, "PSNR of the decoded kernel, mean by family", "components", "dB")

    side, count = full.size, min(72, full.components)
    _tiles(directions, full.basis[:, :count].T.reshape(count, side, side), 12, signed=True)
    _label(directions, f"principal directions 1 to {count} (blue below, red above zero)", "", "")

    true = np.concatenate([k[: 6 if f == "motion" else 4] for f, (k, _) in _worth_a_look(samples).items()])
    versions = [true, *(c.decode(c.encode(true)) for c in (full.truncated(loss.components) for loss in losses[::-1]))]
    names = ["true", *(str(loss.components) for loss in losses[::-1])]
    _tiles(decoded, np.concatenate(versions), len(true), names=names, lobes=full.signed)
    _label(decoded, "kernels of the bank, and decoded from so many components", "", "")
    return figure


def _worth_a_look(samples: Samples) -> Samples:
    """Leave out the delta, which is always the same, unless there is nothing else."""
    return {family: sample for family, sample in samples.items() if family != "delta" or len(samples) == 1}


def _tiles(
    axis: Axes,
    pictures: np.ndarray,
    columns: int,
    *,
    signed: bool = False,
    lobes: bool = False,
    names: list[str] | None = None,
) -> None:
    """Draw small square pictures (n, k, k) on a grid, each scaled to its own maximum; `names` label the rows.

    Kernels are shown by their square root, so that faint tails are seen; `lobes` shows negative values in blue.
    """
    side = pictures.shape[-1] + 2
    grid = np.full((-(-len(pictures) // columns) * side, columns * side), np.nan)
    for i, picture in enumerate(pictures):
        scaled = picture / max(float(np.abs(picture).max()), 1e-12)
        top, left = (i // columns) * side + 1, (i % columns) * side + 1
        shown = scaled if signed else np.sign(scaled) * np.sqrt(np.abs(scaled))
        grid[top : top + side - 2, left : left + side - 2] = shown
    look: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -1} if signed or lobes else {"cmap": "magma", "vmin": 0}
    axis.imshow(grid, vmax=1, interpolation="nearest", **look)
    axis.set_xticks([])
    middles = (np.arange(len(names or [])) + 0.5) * side
    axis.set_yticks(middles, names or [])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _axes_of(kernels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return standard deviations (N,) along and across the principal axis of each kernel, in pixels."""
    axis = np.arange(kernels.shape[-1]) - kernels.shape[-1] // 2
    rows, columns = kernels.sum(axis=2), kernels.sum(axis=1)
    y, x = rows @ axis, columns @ axis
    yy, xx = rows @ axis**2 - y * y, columns @ axis**2 - x * x
    xy = (kernels @ axis) @ axis - x * y
    spread = np.sqrt((xx - yy) ** 2 / 4 + xy * xy)
    middle = (xx + yy) / 2
    return np.sqrt(np.maximum(middle + spread, 0)), np.sqrt(np.maximum(middle - spread, 0))


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Return the ends of a histogram, with a margin for a constant."""
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _panels(count: int, *, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` panels on a grid, which needs no display."""
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
