"""The noise level that `auto` tells, judged by told ones."""

from __future__ import annotations

import numpy as np
import pytest

from tools.told_levels import CELLS, Case, Cell, judge, table


def case_of(cell: Cell) -> Case:
    cut = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Case.of(cell, cut, np.random.default_rng(1))


def test_every_cell_of_camera_is_there_once():
    assert len(CELLS) == len(set(CELLS)) == 2 * 3 * 4 * 2 * 2


@pytest.mark.parametrize(("quality", "error"), [(None, (4.9, 5.1)), (70, (6, 40))])
def test_a_case_knows_its_true_error(quality, error):
    """Of noise and rounding alone it is that of the noise; a JPEG's is larger, and its file tells of it."""
    case = case_of(Cell("area", 5, quality, "Gaussian", 2))
    assert error[0] < case.error < error[1]
    assert (case.file_error > 0) == (quality is not None)
    assert case.lr.shape == (32, 32, 3)
    assert case.levels() == sorted(case.levels())


def test_auto_is_judged_by_the_best_told_level_and_the_worst_cell_is_first():
    cells = CELLS[:2]
    case = case_of(cells[0])
    error, _, best, above = judge(case, {"1.00": 20.0, "2.00": 22.0, "3.00": 21.0}, 21.5)
    assert (error, best, above) == (case.error, 2.0, -0.5)
    rows = table({cells[0]: [(1, 1, 1, -0.1)], cells[1]: [(1, 1, 1, -0.2), (1, 1, 1, -0.8)]}, worst=2).splitlines()
    assert rows[0] == "2 cells: auto - best -0.30 dB in the mean, 1 cells below -0.3 dB"
    assert [str(cells[1]) in rows[-2], str(cells[0]) in rows[-1]] == [True, True]
    assert rows[-2].endswith("| -0.50 | -0.80 |")
