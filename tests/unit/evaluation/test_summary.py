"""From rows to headline numbers: means over images first, then over kernels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from pipeline.evaluation.protocol import PROTOCOLS
from pipeline.evaluation.summary import cells, headline, kernel_groups, print_tables

TABLE1 = PROTOCOLS["usrnet-table1"]
METRICS = ("psnr_rgb", "psnr_y", "ssim_rgb", "ssim_y", "psnr_rgb_shifted", "lr_residual", "seconds", "memory_mib")


def row(image: str, kernel: int, method: str, value: float, sigma: float = 0.0) -> dict:
    common = dict.fromkeys(METRICS, value) | {"kernel_psnr": None, "kernel_correlation": None}
    return {"image": image, "kernel": kernel, "scale": 2, "sigma": sigma, "method": method, **common, "psnr_rounds": []}


def rows() -> list[dict]:
    """Gaussian kernels 1-8: 30 and 20 dB for the two images; motion 9-12: 20 and 10; blind one better."""
    found = []
    for kernel in range(1, 13):
        base = 25.0 if kernel <= 8 else 15.0
        for method, gain in (("bicubic", 0.0), ("blind", 1.0), ("nonblind", 2.0)):
            for image, offset in (("a", 5.0), ("b", -5.0)):
                found.append(row(image, kernel, method, base + gain + offset))
    return found


def test_headline_is_the_mean_over_kernels_of_means_over_images():
    found = headline(cells(rows(), 12), TABLE1, kernel_groups(12), "Set-1")
    assert found["psnr.usrnet-table1.Set-1.x2.blind.gaussian"] == pytest.approx(26)
    assert found["psnr.usrnet-table1.Set-1.x2.blind.motion"] == pytest.approx(16)
    assert found["psnr.usrnet-table1.Set-1.x2.blind"] == pytest.approx((8 * 26 + 4 * 16) / 12)
    assert len(found) == 9


def test_noise_levels_have_names_of_their_own():
    found = headline(cells([row("a", 1, "bicubic", 20.0, 2.55 / 255)], 1), TABLE1, kernel_groups(1), "Set-1")
    assert found == {"psnr.usrnet-table1.Set-1.x2.sigma2.55.bicubic": 20.0}


def test_rounds_are_averaged_and_missing_values_left_out():
    blind = [row(i, 1, "blind", 20.0) | {"psnr_rounds": r} for i, r in (("a", [1.0, 3.0]), ("b", [3.0, 5.0]))]
    (cell,) = cells(blind, 1)
    np.testing.assert_allclose(cell.psnr_rounds, [2, 4])
    assert cell.mean("kernel_psnr", [1]) is None


def test_the_terminal_table_shows_every_number():
    console = Console(file=io.StringIO(), width=110)
    print_tables(cells(rows(), 12), 12, TABLE1, console)
    text = console.file.getvalue()
    for expected in ("x2, no noise", "gaussian mean", "26.00", "17.00", "all mean", "-1.00", "+1.00"):
        assert expected in text
