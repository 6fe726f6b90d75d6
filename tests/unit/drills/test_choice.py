"""Which drills are done, and what their seed decides."""

from __future__ import annotations

import os
import signal

from tests.drills import faults, kills
from tests.drills.__main__ import choose, in_turn, main, without
from tests.drills.drill import Drill
from tests.drills.report import Try
from tests.drills.trial import dice

ALL = [Drill(name, "", "", ("early", "middle"), lambda *_: None) for name in ("kill-a", "kill-ab", "race")]


def names(only: list[str]) -> list[str]:
    return [f"{drill.name}/{moment}" for drill, moments in choose(ALL, only) for moment in moments]


def test_all_are_chosen_unless_some_are_named():
    assert len(names([])) == 6
    assert names(["kill-a"]) == ["kill-a/early", "kill-a/middle", "kill-ab/early", "kill-ab/middle"]
    assert names(["kill-ab/middle", "race/early"]) == ["kill-ab/middle", "race/early"]
    assert names(["none"]) == []


def test_every_drill_has_a_try_before_any_has_two():
    all_moments = [(drill, drill.moments) for drill in [*ALL, Drill("one", "", "", ("start",), lambda *_: None)]]
    for seed in range(5):
        order = [(drill.name, moment) for drill, moment in in_turn(all_moments, seed)]
        assert sorted(order) == sorted((drill.name, moment) for drill, moments in all_moments for moment in moments)
        assert {name for name, _ in order[:4]} == {"kill-a", "kill-ab", "race", "one"}
        assert order == [(drill.name, moment) for drill, moment in in_turn(all_moments, seed)]
    assert len({in_turn(all_moments, seed)[0] for seed in range(50)}) == 7


def test_an_unknown_name_is_refused(capsys):
    assert main(["--only", "none"]) == 2
    assert "no drill is called none" in capsys.readouterr().err


def test_a_try_draws_the_same_whatever_is_drilled_beside_it():
    def drawn(seed: int, drill: str, moment: str, attempt: int = 0) -> float:
        return dice(Try(drill, "", "", moment, seed), attempt).random()

    cases = [
        (7, "a", "early", 0),
        (8, "a", "early", 0),
        (7, "b", "early", 0),
        (7, "a", "late", 0),
        (7, "a", "early", 1),
    ]
    assert [drawn(*case) for case in cases] == [drawn(*case) for case in cases]
    assert len({drawn(*case) for case in cases}) == len(cases)


def test_every_drill_has_a_name_of_its_own():
    found = [drill.name for drill in (*kills.drills(), *faults.drills())]
    assert len(set(found)) == len(found) > 40


def test_a_process_is_seen_to_handle_a_signal():
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert not kills.catches(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *_: None)
        assert kills.catches(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_was_tried_well_is_not_tried_again():
    drills = [*kills.drills(), *faults.drills()]
    whole = choose(drills, [])
    done = [Try(drill.name, drill.what, drill.where, moments[0], 0) for drill, moments in whole]
    left = without(whole, done)
    assert sum(len(moments) for _, moments in left) == sum(len(moments) for _, moments in whole) - len(whole)
    assert all((one.drill, one.moment) not in {(d.name, m) for d, ms in left for m in ms} for one in done)
