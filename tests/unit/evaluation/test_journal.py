"""The journal of a killed evaluation: whole lines count, a line that was cut is done again, damage is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernels_bank.runtime.errors import ArtefactError
from pipeline.evaluation.compute import _read_journal
from tests.unit.evaluation.results import result

ROW = [result(uri="a.png", kernel=1).as_dict()]


def journal(folder: Path, *lines: object) -> Path:
    (folder / "journal.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder / "journal.jsonl"


def test_a_line_that_was_cut_is_cut_off(tmp_path: Path):
    path = journal(tmp_path, {"made_from": "x"}, ROW)
    whole = path.read_bytes()
    path.write_bytes(whole + b'[{"uri": "b.p')
    assert list(_read_journal(path, "x")) == [("a.png", 1, 2, 0.0)]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [[], {}, [{}], 3, None, "text"])
def test_damage_is_one_line_that_names_the_file(tmp_path: Path, line: object):
    with pytest.raises(ArtefactError, match=r"journal\.jsonl: damaged; delete it"):
        _read_journal(journal(tmp_path, {"made_from": "x"}, line), "x")
    with pytest.raises(ArtefactError, match=r"journal\.jsonl: damaged; delete it"):
        _read_journal(journal(tmp_path, line), "x")


def test_what_is_no_text_is_damage(tmp_path: Path):
    (tmp_path / "journal.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ArtefactError, match="damaged"):
        _read_journal(tmp_path / "journal.jsonl", "x")


def test_the_journal_of_another_evaluation_is_refused(tmp_path: Path):
    with pytest.raises(ArtefactError, match="holds another evaluation"):
        _read_journal(journal(tmp_path, {"made_from": "y"}, ROW), "x")
