"""The gate's judgement and the way back, as pure functions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.registry import retention
from pipeline.registry.promotion import Move, _record, earlier_holder, objections_to
from pipeline.registry.retention import outdated
from pipeline.registry.versions import Version

BLIND, NONBLIND, BICUBIC = "psnr.p.x2.blind", "psnr.p.x2.nonblind", "psnr.p.x2.bicubic"


@given(st.floats(0, 60), st.floats(0, 60), st.floats(0, 3))
def test_worse_by_more_than_the_tolerance_is_refused_and_nothing_else(candidate: float, champion: float, slack: float):
    refused = bool(objections_to({BLIND: candidate}, {BLIND: champion}, slack))
    if abs(champion - slack - candidate) > 1e-6:  # beside the edge; on it, rounding decides
        assert refused == (candidate < champion - slack)


def test_the_edge_of_the_tolerance_passes():
    assert not objections_to({BLIND: 29.95}, {BLIND: 30.0}, 0.05)
    assert objections_to({BLIND: 29.94}, {BLIND: 30.0}, 0.05) == (f"{BLIND} falls from 30.00 to 29.94 dB",)


@pytest.mark.parametrize(
    ("candidate", "champion", "count"),
    [
        ({}, {}, 0),
        ({BLIND: 20.0}, {}, 0),
        ({}, {BLIND: 30.0}, 1),
        ({"psnr.other.x2.blind": 40.0}, {BLIND: 30.0}, 1),  # another protocol does not count
        ({BLIND: math.nan}, {BLIND: 30.0}, 1),
        ({BLIND: 30.0}, {BLIND: math.nan}, 0),
        ({BLIND: 30.0, BICUBIC: 1.0}, {BLIND: 30.0, BICUBIC: 25.0}, 0),  # no merit of either model
        ({BLIND: 30.0, NONBLIND: 1.0}, {BLIND: 30.0, NONBLIND: 31.0}, 0),  # what counts is what it is used for
        ({NONBLIND: 1.0}, {NONBLIND: 31.0}, 1),
        ({BLIND: 1.0, "psnr.p.x4.blind": 1.0}, {BLIND: 30.0, "psnr.p.x4.blind": 25.0}, 2),
        ({BLIND: 30.0, "lpips.p.x2.blind": 9.0}, {BLIND: 30.0, "lpips.p.x2.blind": 0.1}, 0),
    ],
)
def test_what_is_compared(candidate: dict, champion: dict, count: int):
    assert len(objections_to(candidate, champion, 0.05)) == count


def moves(*steps: str) -> list[Move]:
    """`>3` promotes version 3, `<2` rolls back to 2; `previous` is what the step before left."""
    made, holder = [], None
    for number, step in enumerate(steps, 1):
        version = int(step[1:])
        action = "promote" if step[0] == ">" else "rollback"
        made.append(Move(number, action, version, holder, "", "", (), None))
        holder = version
    return made


@pytest.mark.parametrize(
    ("steps", "current", "target"),
    [
        ((), 1, None),
        ((">1",), 1, None),
        ((">1", ">2"), 2, 1),
        ((">1", ">2", ">3"), 3, 2),
        ((">1", ">2", ">3", "<2"), 2, 1),  # a second rollback goes one further, not forward again
        ((">1", ">2", ">3", "<2", "<1"), 1, None),
        ((">1", ">2", "<1", ">3"), 3, 1),  # not to 2, which was taken back
        ((">1", ">2", ">1"), 1, 2),  # promoted a second time
        ((">1", ">2", ">3"), 2, 1),  # cut off between record and alias
        ((">1", ">2"), 7, 2),  # moved by hand
        ((">1", ">2", ">3", "<2"), 3, 2),  # a rollback cut off between record and alias
    ],
)
def test_the_way_back(steps: tuple[str, ...], current: int, target: int | None):
    assert earlier_holder(moves(*steps), current, range(10)) == target


def test_deleted_versions_are_passed_over():
    assert earlier_holder(moves(">1", ">2", ">3"), 3, [1, 3]) == 1


def test_an_alias_set_before_the_first_promotion_is_part_of_the_way():
    assert earlier_holder([Move(1, "promote", 5, 4, "", "", (), None)], 5, range(10)) == 4


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8))
def test_rolling_back_retraces_the_promotions_in_reverse(promoted: list[int]):
    path = [v for i, v in enumerate(promoted) if i == 0 or promoted[i - 1] != v]
    record, seen = moves(*(f">{v}" for v in path)), [path[-1]]
    while (target := earlier_holder(record, seen[-1], range(10))) is not None and len(seen) < 20:
        record.append(Move(len(record) + 1, "rollback", target, seen[-1], "", "", (), None))
        seen.append(target)
    # Each is an earlier holder; they come in the order of the record, and it ends.
    order = iter(reversed(path))
    assert all(any(step == v for v in order) for step in seen)
    assert seen[-1] == path[0] or path[0] in seen


def version(number: int, created: int) -> Version:
    return Version("m", number, (), created, "", {}, "")


def test_only_old_unwanted_versions_behind_the_newest_are_outdated():
    versions = [version(n, created=n * 100) for n in (6, 5, 4, 3, 2, 1)]
    found = outdated(versions, wanted={2, None}, keep=2, before=350)
    assert [v.number for v in found] == [3, 1]


def test_more_days_than_there_were_keep_every_version(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retention.versions, "list_versions", lambda *_: [version(1, created=100)])
    monkeypatch.setattr(retention.versions, "aliases_of", lambda *_: {})
    assert retention.spare("sqlite:///x", "m", keep=0, older_than_days=1e308) == []
    assert [v.number for v in retention.spare("sqlite:///x", "m", keep=0, older_than_days=0)] == [1]


def test_a_user_without_a_name_moves_an_alias_under_the_number(monkeypatch: pytest.MonkeyPatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 1_000_730_000)  # such as a cluster gives to a pod
    assert _record("promote", 2, 1, (), None).by == "uid 1000730000"
