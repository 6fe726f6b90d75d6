"""From rows to headline numbers: means over images first, then over kernels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from pipeline.evaluation.protocol import PROTOCOLS
from pipeline.evaluation.row import Row
from pipeline.evaluation.summary import cells, headline, kernel_groups, print_tables
from tests.unit.evaluation.results import result

TABLE1 = PROTOCOLS["usrnet-table1"]


def rows() -> list[Row]:
    """Gaussian kernels 1-8: 30 and 20 dB for the two images; motion 9-12: 20 and 10; blind one better."""
    found = []
    for kernel in range(1, 13):
        base = 25.0 if kernel <= 8 else 15.0
        for method, gain in (("bicubic", 0.0), ("blind", 1.0), ("nonblind", 2.0)):
            for image, offset in (("a", 5.0), ("b", -5.0)):
                found.append(result(image, kernel, method, base + gain + offset))
    return found


def test_headline_is_the_mean_over_kernels_of_means_over_images():
    found = headline(cells(rows(), 12), TABLE1, kernel_groups(12), "Set-1")
    assert found["psnr.usrnet-table1.Set-1.x2.blind.gaussian"] == pytest.approx(26)
    assert found["psnr.usrnet-table1.Set-1.x2.blind.motion"] == pytest.approx(16)
    assert found["psnr.usrnet-table1.Set-1.x2.blind"] == pytest.approx((8 * 26 + 4 * 16) / 12)
    assert len(found) == 9


def test_noise_levels_have_names_of_their_own():
    found = headline(cells([result("a", 1, sigma=2.55 / 255)], 1), TABLE1, kernel_groups(1), "Set-1")
    assert found == {"psnr.usrnet-table1.Set-1.x2.sigma2.55.bicubic": 20.0}


def test_rounds_are_averaged_and_missing_values_left_out():
    blind = [result(i, 1, "blind", psnr_rounds=r) for i, r in (("a", [1.0, 3.0]), ("b", [3.0, 5.0]))]
    (cell,) = cells(blind, 1)
    np.testing.assert_allclose(cell.psnr_rounds, [2, 4])
    assert cell.mean("kernel_psnr", [1]) is None


def test_the_terminal_table_shows_every_number():
    console = Console(file=io.StringIO(), width=110)
    print_tables(cells(rows(), 12), 12, TABLE1, console)
    text = console.file.getvalue()
    for expected in ("x2, no noise", "gaussian mean", "26.00", "17.00", "all mean", "-1.00", "+1.00"):
        assert expected in text
