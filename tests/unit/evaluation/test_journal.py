"""The journal of a killed evaluation: whole lines count, a line that was cut is done again, damage is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kernels_bank.runtime.errors import ArtefactError
from pipeline.evaluation.compute import RESULTS, SUMMARY, Plan, _read_journal, evaluate, save
from pipeline.evaluation.protocol import PROTOCOLS
from pipeline.evaluation.row import Case, Row
from tests.unit.evaluation.results import result

ROW = [result(uri="a.png", kernel=1).as_dict()]
# Without a model the protocol has one method, bicubic.
PLAN = Plan(
    {}, {}, PROTOCOLS["dan-gaussian8"], [Case("a.png", 1, 2, 0.0), Case("a.png", 2, 2, 0.0)], {"made_from": "x"}
)


def journal(folder: Path, *lines: object) -> Path:
    (folder / "journal.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder / "journal.jsonl"


def test_a_line_that_was_cut_is_cut_off(tmp_path: Path):
    path = journal(tmp_path, {"made_from": "x"}, ROW)
    whole = path.read_bytes()
    path.write_bytes(whole + b'[{"uri": "b.p')
    assert list(_read_journal(path, PLAN)) == [("a.png", 1, 2, 0.0)]
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [
        *([], {}, [{}], 3, None, "text"),
        [result(uri="b.png", kernel=1).as_dict()],
        [result(uri="a.png", kernel=3).as_dict()],
        [result(uri="a.png", kernel=1, method="mine").as_dict()],
        [*ROW, *ROW],
        [*ROW, result(uri="a.png", kernel=2).as_dict()],
        [ROW[0] | {"psnr_rgb": None}],
        [ROW[0] | {"psnr_rounds": ["high"]}],
    ],
)
def test_damage_is_one_line_that_names_the_file(tmp_path: Path, line: object):
    with pytest.raises(ArtefactError, match=r"journal\.jsonl: damaged; delete it"):
        _read_journal(journal(tmp_path, {"made_from": "x"}, line), PLAN)
    with pytest.raises(ArtefactError, match=r"journal\.jsonl: damaged; delete it"):
        _read_journal(journal(tmp_path, line), PLAN)


def test_what_is_no_text_is_damage(tmp_path: Path):
    (tmp_path / "journal.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ArtefactError, match="damaged"):
        _read_journal(tmp_path / "journal.jsonl", PLAN)


def test_the_journal_of_another_evaluation_is_refused(tmp_path: Path):
    with pytest.raises(ArtefactError, match="holds another evaluation"):
        _read_journal(journal(tmp_path, {"made_from": "y"}, ROW), PLAN)


def test_a_case_that_is_there_twice_counts_once(tmp_path: Path):
    again = [ROW[0] | {"psnr_rgb": 30.0}]
    done = _read_journal(journal(tmp_path, {"made_from": "x"}, ROW, again), PLAN)
    assert {case: [row.measures.psnr_rgb for row in rows] for case, rows in done.items()} == {
        ("a.png", 1, 2, 0.0): [30.0]
    }


def finished(folder: Path, *kernels: int) -> list[Row]:
    """Finish the evaluation `PLAN` with a row for each of these kernels."""
    rows = [result(uri="a.png", kernel=number, value=20.0 + number) for number in kernels]
    save(rows, {"made_from": "x"}, folder)
    return rows


def test_a_finished_evaluation_is_read_again(tmp_path: Path):
    assert (finished(tmp_path, 1, 2), True) == evaluate(PLAN, tmp_path)


@pytest.mark.parametrize("kernels", [(1,), (1, 2, 2), (1, 3)])
def test_results_of_other_cases_are_refused(tmp_path: Path, kernels: tuple[int, ...]):
    finished(tmp_path, *kernels)
    with pytest.raises(ArtefactError, match=r"results\.parquet: gone, damaged, or not of .* delete it and summary"):
        evaluate(PLAN, tmp_path)


@pytest.mark.parametrize(
    "spoil", [lambda data: b"", lambda data: data[:-9], lambda data: data.replace(b"a.png", b"b.png")]
)
def test_damaged_results_are_refused(tmp_path: Path, spoil: Callable[[bytes], bytes]):
    finished(tmp_path, 1, 2)
    (tmp_path / RESULTS).write_bytes(spoil((tmp_path / RESULTS).read_bytes()))
    with pytest.raises(ArtefactError, match=r"results\.parquet: gone, damaged"):
        evaluate(PLAN, tmp_path)


def test_results_that_are_gone_are_one_line(tmp_path: Path):
    finished(tmp_path, 1, 2)
    (tmp_path / RESULTS).unlink()
    with pytest.raises(ArtefactError, match=r"results\.parquet: gone, damaged"):
        evaluate(PLAN, tmp_path)


@pytest.mark.parametrize("summary", ["[]", "null", "3"])
def test_a_summary_that_is_none_is_another_evaluation(tmp_path: Path, summary: str):
    finished(tmp_path, 1, 2)
    (tmp_path / SUMMARY).write_text(summary)
    with pytest.raises(ArtefactError, match="holds another evaluation"):
        evaluate(PLAN, tmp_path)
