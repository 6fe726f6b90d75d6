"""The article's tables: what is written where, of which numbers."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tools.article import EXPERIMENTS, PAGE, means, rounds_table, table
from tools.blocks import with_block
from tools.where_time_goes import PAGE as SPEED


@pytest.mark.parametrize(("page", "command"), [(SPEED, "tools.where_time_goes"), (PAGE, "tools.article")])
def test_only_what_is_between_the_marks_is_replaced(page, command):
    before = page.read_text(encoding="utf-8")
    written = with_block(before, command, r"new \1")
    head, rest = before.split(f"<!-- python -m {command} -->")
    assert written.startswith(head)
    assert written.endswith(rest.split("<!-- end -->", 1)[1])
    assert with_block(written, command, "x") == with_block(before, command, "x")
    with pytest.raises(ValueError, match="is expected"):
        with_block("no marks", command, "x")


@pytest.fixture
def folder(tmp_path):
    """An evaluation whose every number says what it is of."""
    kernels = np.arange(1, 13)
    entries, rows = [], []
    for base, method in ((10.0, "bicubic"), (20.0, "blind"), (30.0, "nonblind")):
        values = {"psnr_rgb": (base + kernels).tolist(), "psnr_rgb_shifted": (base + kernels + 0.5).tolist()}
        entries.append({"method": method, "by_kernel": values})
        rounds = [] if method != "blind" else [1.0, 2.0, 3.0]
        rows += [{"method": method, "kernel": int(k), "psnr_rgb": base + k, "psnr_rounds": rounds} for k in kernels]
    (tmp_path / "summary.json").write_text(json.dumps({"means": entries}))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "results.parquet")
    return tmp_path


def test_a_cell_is_plain_and_shifted_and_groups_are_means_of_their_kernels(folder):
    lines = table({2: means(folder)}).splitlines()
    assert lines[0] == "| kernel | x2 bicubic | x2 **blind** | x2 non-blind |"
    assert lines[2] == "| 1 | 11.00 / 11.50 | 21.00 / 21.50 | 31.00 / 31.50 |"
    assert lines[14] == "| **Gaussian** | 14.50 / 15.00 | 24.50 / 25.00 | 34.50 / 35.00 |"
    assert lines[15] == "| **motion** | 20.50 / 21.00 | 30.50 / 31.00 | 40.50 / 41.00 |"


def test_a_table_has_two_scales_at_most(folder):
    parts = table(dict.fromkeys((2, 3, 4), means(folder))).split("\n\n")
    assert [part.splitlines()[0] for part in parts] == [
        "| kernel | x2 bicubic | x2 **blind** | x2 non-blind | x3 bicubic | x3 **blind** | x3 non-blind |",
        "| kernel | x4 bicubic | x4 **blind** | x4 non-blind |",
    ]
    assert [len(part.splitlines()) for part in parts] == [16, 16]


def test_rounds_stand_beside_what_the_guard_let_stand(folder):
    lines = rounds_table({2: folder}).splitlines()
    assert lines[0] == "|  | delta | round 1 | round 2 | guarded |"
    assert lines[2:] == ["| x2 Gaussian | 1.00 | 2.00 | 3.00 | 24.50 |", "| x2 motion | 1.00 | 2.00 | 3.00 | 30.50 |"]


def test_the_experiments_are_the_configs():
    configs = {path.stem for path in (PAGE.parents[1] / "jobs" / "configs").glob("article-*-x?.yaml")}
    assert {f"article-{kind}-x{scale}" for kind, scales in EXPERIMENTS.items() for scale in scales} == configs
