"""The report as one self-contained page, with every style, script and picture inside.

This file prepares means and pictures for the template; `template/` defines the appearance.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from pipeline.catalogue import REGISTRY
from pipeline.evaluation.cases import BICUBIC, BLIND, NONBLIND, UNALIGNED
from pipeline.evaluation.crops import Shown, judged_method
from pipeline.evaluation.metrics import embed_kernel
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.row import Row
from pipeline.evaluation.summary import Cell, kernel_groups
from pipeline.evaluation.wording import grade, noise_text
from pipeline.images.convert import grey_to_rgb
from pipeline.images.encode import encode_png

_TEMPLATE = Path(__file__).with_name("template")
_METRICS = {"psnr_rgb": "RGB PSNR", "psnr_y": "Y PSNR", "psnr_rgb_shifted": "RGB PSNR after the best shift"}
_SHORT = {"psnr_rgb": "RGB", "psnr_y": "luma", "psnr_rgb_shifted": "after best shift"}
_MEASURES = {
    "psnr_rgb": ("RGB", "{:.2f}", 1.0),
    "psnr_rgb_shifted": ("shifted", "{:.2f}", 1.0),
    "psnr_y": ("luma", "{:.2f}", 1.0),
    "ssim_rgb": ("SSIM", "{:.4f}", 1.0),
    "ssim_y": ("SSIM luma", "{:.4f}", 1.0),
    "kernel_psnr": ("kernel PSNR", "{:.1f}", 1.0),
    "kernel_correlation": ("kernel corr.", "{:.3f}", 1.0),
    "lr_residual": ("LR residual", "{:.2f}", 255.0),
    "seconds": ("seconds", "{:.2f}", 1.0),
    "memory_mib": ("MiB", "{:.0f}", 1.0),
}
_CHART = (44.0, 312.0, 14.0, 120.0)  # left, right, top and bottom of the lines in a chart's 320 x 170


def render(
    about: Mapping[str, Any],
    table: Sequence[Cell],
    rows: Sequence[Row],
    kernels: Mapping[int, np.ndarray],
    shown: Sequence[tuple[str, Shown]],
    protocol: Protocol,
) -> str:
    """Write the page as HTML.

    Args:
        about: provenance from `pipeline.evaluation.compute.prepare`.
        table: means over the images.
        rows: the results, from which one estimate of every kernel is shown.
        kernels: kernels (N, k, k) by scale.
        shown: pictures by their caption ("best").
        protocol: protocol of the evaluation.
    """
    title, version = _title(about["model"])
    metrics = dict.fromkeys((protocol.headline, *_METRICS))
    panels = list(dict.fromkeys((cell.scale, cell.sigma) for cell in table))
    by_panel = {p: {c.method: c for c in table if (c.scale, c.sigma) == p and c.method != UNALIGNED} for p in panels}
    shown_panels = [_panel(p, by_panel, list(metrics), kernels[p[0]]) for p in panels]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html").render(
        about=about,
        title=title,
        version=version,
        blind=any(BLIND in cells for cells in by_panel.values()),
        protocol=_settings(protocol),
        metrics=[{"name": m, "label": _METRICS[m], "short": _SHORT[m]} for m in metrics],
        panels=shown_panels,
        loses=any(
            "loss" in part["css"] for p in shown_panels for t in p["tables"] for r in t["rows"] for part in r["bar"]
        ),
        strips=[_strip(rank, one, protocol) for rank, one in shown],
        kernel_sets=_kernel_sets(panels, rows, by_panel, kernels),
        charts=[chart for p in panels if (chart := _chart(p, by_panel[p])) is not None],
        measure_names=[name for name, _, _ in _MEASURES.values()],
        measures=_measures(table),
    )


def _title(model: str) -> tuple[str, str | None]:
    """Return the model's name, and its version if it is registered."""
    if model.startswith(REGISTRY):
        name, _, version = model.removeprefix(REGISTRY).rpartition("/")
        return name, version
    return model.rstrip("/").rpartition("/")[2], None


def _settings(protocol: Protocol) -> list[tuple[str, str]]:
    """Return the protocol's fields as text, without unused ones."""
    found = []
    for name, value in protocol.model_dump(exclude={"name"}, exclude_none=True).items():
        if name == "sigmas":
            levels = {s: ", ".join(f"{255 * v:g}/255" if v else "0" for v in vs) for s, vs in value.items()}
            text = "; ".join(f"×{s}: {of_scale}" for s, of_scale in levels.items())
        elif name == "gaussian_widths":
            text = "; ".join(f"×{s}: {low}–{high}" for s, (low, high) in value.items())
        else:
            text = str(value).lower()
        found.append((name.replace("_", " "), text))
    return found


_Panels = Mapping[tuple[int, float], Mapping[str, Cell]]


def _panel(panel: tuple[int, float], panels: _Panels, metrics: Sequence[str], kernels: np.ndarray) -> dict[str, Any]:
    """Prepare one scale and noise level: its line in the overview, and a table for each metric."""
    chosen = panels[panel]
    everything = range(1, len(kernels) + 1)
    headline = metrics[0]
    # All lines of the overview share an axis.
    means = [c.mean(headline, everything) or 0.0 for cells in panels.values() for c in cells.values()]
    low, high = min(means) - 0.5, max(means) + 0.5
    overview = []
    for method, cell in chosen.items():
        if method in (BICUBIC, BLIND, NONBLIND):
            value = cell.mean(headline, everything) or 0.0
            place = round(100 * (value - low) / (high - low), 2)
            overview.append({"css": method, "name": _name(method), "value": f"{value:.2f}", "place": place})
    scale, sigma = panel
    return {
        "scale": scale,
        "noise": noise_text(sigma),
        "overview": overview,
        "tables": [_table(chosen, metric, kernels) for metric in metrics],
    }


def _table(chosen: Mapping[str, Cell], metric: str, kernels: np.ndarray) -> dict[str, Any]:
    """Prepare a table with a row for each kernel and for the mean of each group of kernels."""
    groups = kernel_groups(len(kernels))
    lines = [(str(k), [k]) for k in range(1, len(kernels) + 1)]
    lines += [(f"{name} mean" if name != "all" else "mean", members) for name, members in groups.items()]
    values = [{method: cell.mean(metric, members) or 0.0 for method, cell in chosen.items()} for _, members in lines]
    # Bars start a little below the smallest value, since a PSNR has no meaningful zero.
    every = [v for row in values for v in row.values()]
    low, high = min(every) - 1.5, max(every)
    judged = judged_method(chosen)
    reference, gap_name = (NONBLIND, "blind − true") if judged == BLIND else (BICUBIC, "gain")
    found = []
    for number, ((name, members), row) in enumerate(zip(lines, values, strict=True)):
        single = len(members) == 1 and number < len(kernels)
        found.append(
            {
                "name": name,
                "picture": _kernel_picture(kernels[number]) if single else None,
                "mean": not single,
                "first": number == len(kernels),
                "values": [
                    {"name": _name(method), "text": f"{value:.2f}", "judged": method == judged}
                    for method, value in row.items()
                ],
                "bar": _bar(row, judged, low, high),
                "gap": _gap(row[judged] - row[reference], gain=reference == BICUBIC),
            }
        )
    return {"metric": metric, "names": [_name(method) for method in chosen], "gap_name": gap_name, "rows": found}


def _bar(values: Mapping[str, float], judged: str, low: float, high: float) -> list[dict[str, Any]]:
    """Return the parts of a bar: bicubic, gain or loss of the method, gain of the known kernel; widths in percent."""
    floor, value = values[BICUBIC], values[judged]
    parts = [("bicubic", low, min(floor, value))]
    parts.append((f"gain {judged}", floor, value) if value >= floor else ("loss", value, floor))
    if judged == BLIND:
        parts.append(("left", max(floor, value), values[NONBLIND]))
    width = 100 / (high - low)
    return [{"css": css, "width": round((end - start) * width, 2)} for css, start, end in parts if end > start]


def _gap(difference: float, *, gain: bool) -> dict[str, Any]:
    """Return a number with a colour, by grade for a gap to the known kernel and by sign for a gain."""
    css: str
    if gain:
        css, strength = ("good" if difference > 0 else "bad"), min(45.0, 10 + 8 * abs(difference))
    else:
        css = grade(difference)
        strength = 24.0 if css == "good" else min(50.0, 20 + 8 * abs(difference))
    return {"css": css, "strength": round(strength), "text": f"{difference:+.2f}".replace("-", "−")}


def _strip(rank: str, shown: Shown, protocol: Protocol) -> dict[str, Any]:
    """Prepare one case as tiles: LR, every method, HR."""
    case = shown.case
    tiles = [{"name": "LR", "source": _png(shown.lr_part()), "psnr": None}]
    for method, estimate in shown.estimates.items():
        if method != UNALIGNED:
            picture = _png(shown.part(estimate.sr))
            tiles.append({"name": _name(method), "source": picture, "psnr": f"{shown.psnr[method]:.2f}"})
    tiles.append({"name": "HR", "source": _png(shown.part(shown.hr)), "psnr": None})
    noise = f", {noise_text(case.sigma)}" if case.sigma else ""
    return {
        "rank": rank,
        "scale": case.scale,
        "image": case.name,
        "kernel": case.kernel,
        "noise": noise,
        "tiles": tiles,
    }


def _kernel_sets(
    panels: Sequence[tuple[int, float]],
    rows: Sequence[Row],
    by_panel: _Panels,
    kernels: Mapping[int, np.ndarray],
) -> list[dict[str, Any]]:
    """Prepare the kernels: the true ones once, or true and estimated for each scale and noise level."""
    found = []
    for scale, sigma in panels:
        blind = [r for r in rows if r.setting == (scale, sigma) and r.method == BLIND]
        members = []
        for number, kernel in enumerate(kernels[scale], start=1):
            of_kernel = sorted((r for r in blind if r.case.kernel == number), key=_correlation)
            pictures, correlation = [_kernel_picture(kernel)], ""
            if of_kernel:
                estimate = np.asarray(of_kernel[len(of_kernel) // 2].measures.kernel_estimate, np.float32)
                side = round(len(estimate) ** 0.5)
                # At the size of the true kernel, so that both are drawn to the same scale.
                pictures.append(_kernel_picture(embed_kernel(estimate.reshape(side, side), kernel.shape[0])))
                correlation = f"{np.mean([_correlation(r) for r in of_kernel]):.3f}"
            members.append({"number": number, "pictures": pictures, "correlation": correlation})
        found.append({"title": f"×{scale}" if blind else "", "noise": noise_text(sigma), "kernels": members})
    different = {kernels[scale].tobytes() for scale, _ in panels}
    return found if len(different) > 1 or any(BLIND in cells for cells in by_panel.values()) else found[:1]


def _correlation(row: Row) -> float:
    return float(row.measures.kernel_correlation or 0.0)


def _chart(panel: tuple[int, float], chosen: Mapping[str, Cell]) -> dict[str, Any] | None:
    """Prepare the PSNR after each round, in the coordinates of an SVG; None for a model without rounds."""
    if BLIND not in chosen or len(chosen[BLIND].psnr_rounds) < 2:
        return None
    values = chosen[BLIND].psnr_rounds
    known = chosen[NONBLIND].mean("psnr_rgb", range(1, len(chosen[NONBLIND].by_kernel["psnr_rgb"]) + 1)) or 0.0
    low, high = min(*values, known), max(*values, known)
    room = max(0.15 * (high - low), 0.05)
    low, high = low - room, high + room
    left, right, top, bottom = _CHART
    ys = [round(bottom - (bottom - top) * (v - low) / (high - low), 1) for v in [*values, known]]
    xs = [round(left + 30 + (right - left - 60) * i / (len(values) - 1), 1) for i in range(len(values))]
    ticks = np.linspace(low, high, 4)
    return {
        "scale": panel[0],
        "noise": noise_text(panel[1]),
        "grid": [
            {"y": round(bottom - (bottom - top) * float(t - low) / (high - low), 1), "label": f"{t:.2f}"} for t in ticks
        ],
        "known": ys[-1],
        "points": " ".join(f"{x},{y}" for x, y in zip(xs, ys, strict=False)),
        "dots": [{"x": x, "y": y, "value": f"{v:.2f}"} for x, y, v in zip(xs, ys, values, strict=False)],
    }


def _measures(table: Sequence[Cell]) -> list[dict[str, Any]]:
    found = []
    for cell in table:
        everything = range(1, len(cell.by_kernel["psnr_rgb"]) + 1)
        values = {metric: cell.mean(metric, everything) for metric in _MEASURES}
        where = f"×{cell.scale}" + (f" {cell.sigma * 255:.2f}/255" if cell.sigma else "")
        shown = [
            form.format(factor * value) if (value := values[metric]) is not None else "–"
            for metric, (_, form, factor) in _MEASURES.items()
        ]
        found.append({"where": where, "method": _name(cell.method), "values": shown})
    return found


def _name(method: str) -> str:
    return "true kernel" if method == NONBLIND else method


def _kernel_picture(kernel: np.ndarray) -> str:
    """Draw a kernel white on black, by the square root of its values so that tails are visible."""
    grey = np.sqrt(np.maximum(kernel, 0) / kernel.max())
    return _png(grey_to_rgb((grey * 255).round().astype(np.uint8)))


def _png(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()
