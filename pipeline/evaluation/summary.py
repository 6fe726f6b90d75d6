"""Summaries of an evaluation's rows: means over images, the headline numbers, the terminal table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.evaluation.cases import BICUBIC, BLIND, NONBLIND, UNALIGNED
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.row import Row
from pipeline.evaluation.wording import grade, noise_text

# Metrics whose means are in summary.json, besides the headline.
_AVERAGED = (
    *("psnr_rgb", "psnr_y", "ssim_rgb", "ssim_y", "psnr_rgb_shifted"),
    *("kernel_psnr", "kernel_correlation", "lr_residual", "seconds", "memory_mib"),
)


@dataclass(frozen=True)
class Cell:
    """Hold every metric of one (scale, sigma, method) by kernel, averaged over the images."""

    scale: int
    sigma: float
    method: str
    by_kernel: dict[str, list[float | None]]  # metric -> a value for each kernel, None if it does not apply
    psnr_rounds: list[float]  # mean PSNR after each kernel estimate; empty for methods without rounds

    def mean(self, metric: str, kernels: Sequence[int]) -> float | None:
        """Average over the kernels with these numbers, counted from 1."""
        values = [v for k in kernels if (v := self.by_kernel[metric][k - 1]) is not None]
        return float(np.mean(values)) if values else None


def kernel_groups(count: int) -> dict[str, list[int]]:
    """Group the kernels' numbers, from 1: all, and for twelve, as in the benchmark, also Gaussian and motion."""
    groups = {"gaussian": list(range(1, 9)), "motion": list(range(9, 13))} if count == 12 else {}
    return groups | {"all": list(range(1, count + 1))}


def cells(rows: Sequence[Row], kernel_count: int) -> list[Cell]:
    """Average the rows over images, keeping their order."""
    grouped: dict[tuple[int, float, str], list[Row]] = defaultdict(list)
    for row in rows:
        grouped[*row.setting, row.method].append(row)
    found = []
    for (scale, sigma, method), members in grouped.items():
        by_kernel: dict[str, list[float | None]] = {}
        for metric in _AVERAGED:
            values: list[list[float]] = [[] for _ in range(kernel_count)]
            for row in members:
                if (value := row.metric(metric)) is not None:
                    values[row.case.kernel - 1].append(value)
            by_kernel[metric] = [float(np.mean(v)) if v else None for v in values]
        rounds = [row.measures.psnr_rounds for row in members if row.measures.psnr_rounds]
        found.append(Cell(scale, sigma, method, by_kernel, np.mean(rounds, axis=0).tolist() if rounds else []))
    return found


def summarise(about: dict[str, Any], table: Sequence[Cell], protocol: Protocol) -> dict[str, Any]:
    """Make the content of `summary.json`: the provenance, every mean, and the headline numbers by name."""
    groups = kernel_groups(about["kernel_count"])
    return {
        **about,
        "groups": groups,
        "headline": headline(table, protocol, groups, about["test_set"]),
        "means": [
            {
                "scale": cell.scale,
                "sigma": cell.sigma,
                "method": cell.method,
                "by_kernel": cell.by_kernel,
                "psnr_rounds": cell.psnr_rounds,
                **{name: {m: cell.mean(m, members) for m in _AVERAGED} for name, members in groups.items()},
            }
            for cell in table
        ],
    }


def headline(
    table: Sequence[Cell], protocol: Protocol, groups: dict[str, list[int]], test_set: str
) -> dict[str, float]:
    """Name the headline numbers, `psnr.<protocol>.<test set>.x2.blind` and the like: means over kernels.

    The name includes the test set, so that numbers with the same name can be compared.

    Args:
        table: means over the images.
        protocol: protocol of the evaluation.
        groups: kernel numbers by the group's name.
        test_set: name and digest of the images.
    """
    found = {}
    for cell in table:
        noise = f".sigma{cell.sigma * 255:.2f}" if cell.sigma else ""
        if cell.method not in (BICUBIC, BLIND, NONBLIND):
            continue
        for name, members in groups.items():
            value = cell.mean(protocol.headline, members)
            suffix = "" if name == "all" else f".{name}"
            if value is not None:
                found[f"psnr.{protocol.name}.{test_set}.x{cell.scale}{noise}.{cell.method}{suffix}"] = value
    return found


def print_tables(table: Sequence[Cell], kernel_count: int, protocol: Protocol, console: Console) -> None:
    """Print a table per scale and noise level: a row per kernel, PSNR by method, the gap to the known kernel.

    Args:
        table: means over the images.
        kernel_count: number of kernels.
        protocol: protocol of the evaluation.
        console: console to print to.
    """
    groups = kernel_groups(kernel_count)
    for scale, sigma in dict.fromkeys((cell.scale, cell.sigma) for cell in table):
        chosen = {c.method: c for c in table if (c.scale, c.sigma) == (scale, sigma) and c.method != UNALIGNED}
        out = Table(title=f"x{scale}, {noise_text(sigma)}: {_LABEL[protocol.headline]} (dB), protocol {protocol.name}")
        out.add_column("kernel", justify="right")
        for method in chosen:
            out.add_column(method, justify="right")
        if BLIND in chosen:
            out.add_column("blind - nonblind", justify="right")
        shown = chosen.get(BLIND) or chosen[NONBLIND]
        out.add_column(f"{shown.method} - bicubic", justify="left", no_wrap=True)
        lines = [(str(k), [k]) for k in range(1, kernel_count + 1)] + [(f"{n} mean", k) for n, k in groups.items()]
        for name, members in lines:
            if len(members) > 1 and name.startswith(next(iter(groups))):
                out.add_section()
            values = {method: cell.mean(protocol.headline, members) or 0.0 for method, cell in chosen.items()}
            best = max(values.values())
            row: list[str | Text] = [name]
            row += [Text(f"{v:.2f}", style="bold" if v == best else "") for v in values.values()]
            if BLIND in chosen:
                row.append(_gap(values[BLIND] - values[NONBLIND]))
            row.append(_bar(values[shown.method] - values[BICUBIC]))
            out.add_row(*row)
        console.print(out)


_LABEL = {"psnr_rgb": "RGB PSNR", "psnr_y": "Y PSNR"}


def _gap(difference: float) -> Text:
    style = {"good": "green", "fair": "yellow", "bad": "red"}[grade(difference)]
    return Text(f"{difference:+.2f}", style=style)


def _bar(gain: float) -> Text:
    """Draw a bar of one block per half decibel, with its number."""
    blocks = min(16, round(abs(gain) * 2))
    return Text(f"{gain:+.2f} " + "█" * blocks, style="green" if gain >= 0 else "red")
