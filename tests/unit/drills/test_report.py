"""The report of a drill: what its table counts, and how it gets into a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.drills.report import BEGIN, END, Report, Try, put_into, read, write

TRIES = [
    Try("kill-raylet", "SIGKILL of the raylet", "training", "early", 7, starts=2, equal=True, lines=1, seconds=10),
    Try("kill-raylet", "SIGKILL of the raylet", "training", "late", 7, starts=3, equal=False, lines=53, seconds=20),
    Try("damaged-bank", "one bit flipped", "a bank", "codec", 7, starts=1, lines=1, seconds=4),
    Try("clock", "the clock jumps", "training", "middle", 7, skipped="no libfaketime"),
]
TRIES[1].problems.append("the result is another: weights")


@pytest.fixture
def report() -> Report:
    return Report(7, "2 cores", 120.0, TRIES, ["race/start"])


def test_a_row_counts_the_tries_of_its_drill(report: Report):
    rows = [line for line in report.as_markdown().splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| SIGKILL of the raylet | training | early, late | 2 | 1 of 2 | 53 | 15 | 1 |",
        "| one bit flipped | a bank | codec | 1 | - | 1 | 4 | 0 |",
    ]


def test_failures_come_with_the_command_that_repeats_them_and_gaps_are_said(report: Report):
    text = report.as_markdown()
    assert "Seed 7, 2 cores: 3 tries in 2 minutes, 6 starts of a command, 1 failures." in text
    assert "`python -m tests.drills --seed 7 --only kill-raylet/late`: the result is another: weights" in text
    assert "clock/middle: no libfaketime" in text
    assert "Not drilled, the time was up: race/start." in text
    assert report.failed
    assert not Report(7, "", 1.0, [TRIES[0], TRIES[3]]).failed


def test_both_files_hold_all_tries(report: Report, tmp_path: Path):
    text, data = write(report, tmp_path / "a" / "b")
    assert text.read_text() == report.as_markdown()
    found = json.loads(data.read_text())
    assert [Try(**one) for one in found["tries"]] == TRIES


def test_a_later_sitting_keeps_what_was_good(report: Report, tmp_path: Path):
    write(report, tmp_path)
    again = Try("kill-raylet", "SIGKILL of the raylet", "training", "late", 8, starts=2, equal=True, seconds=5)
    both = Report(8, "2 cores", 60.0, [again]).after(read(tmp_path))
    assert both.tries == [TRIES[0], TRIES[2], TRIES[3], again]
    assert "3 tries in 3 minutes, 5 starts of a command, 0 failures (2 sittings)." in both.as_markdown()


def test_the_table_replaces_what_is_between_the_marks(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for text in ("| one |\n", "| two |\n"):
        put_into(page, text)
    assert page.read_text() == f"before\n{BEGIN}\n| two |\n{END}\nafter\n"


@pytest.mark.parametrize("content", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"])
def test_a_page_without_its_marks_is_left_alone(content: str, tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(content)
    with pytest.raises(ValueError, match="once each"):
        put_into(page, "table")
    assert page.read_text() == content
