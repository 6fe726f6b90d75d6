"""What the benchmarks say beside the committed ratios."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.benchmarks import ratios
from tests.benchmarks.ratios import COMMITTED, PAIRS, ratios_of, report, slower

NAMES = st.sampled_from(["a", "b", "c"])
RATIOS = st.dictionaries(NAMES, st.floats(0.01, 1000))


def timed(name: str, median: float, **extra: Any) -> dict[str, Any]:
    return {"name": name, "stats": {"median": median}, "extra_info": extra}


@given(then=RATIOS, now=RATIOS)
def test_only_what_both_have_and_takes_a_fifth_longer_is_named_worst_first(
    then: dict[str, float], now: dict[str, float]
) -> None:
    """Time is 1 / ratio: more than a fifth longer is a ratio below 1 / 1.2 of the committed one."""
    assume(all(abs(then[name] / now[name] - 1.2) > 1e-9 for name in then.keys() & now.keys()))
    both = {name for name in then if name in now and then[name] > 1.2 * now[name]}
    lines = slower(then, now)
    assert {line.split(":")[0] for line in lines} == both
    factors = [then[line[0]] / now[line[0]] for line in lines]
    assert factors == sorted(factors, reverse=True)


def test_a_fifth_itself_is_no_message_and_the_same_run_has_none() -> None:
    assert slower({"a": 1.2}, {"a": 1.0}) == []
    assert slower({"a": 1.21}, {"a": 1.0}) == ["a: 1x, committed 1.21x: takes 1.21 times as long"]


def test_a_pair_is_the_references_time_over_ours_a_sample() -> None:
    pair = PAIRS["a sample from a 2K photograph"]
    run = [timed(pair.reference, 3.0, samples=1), timed(pair.ours, 8.0, samples=16)]
    assert ratios_of({"benchmarks": run}) == {"a sample from a 2K photograph": 6.0}
    assert ratios_of({"benchmarks": run[:1]}) == {}, "a pair of which one was not run"
    assert ratios_of({"benchmarks": [timed("other", 1.0, ratios={"kernels": 98.76})]}) == {"kernels": 98.8}


def test_another_machine_is_said() -> None:
    there, here = ({"machine": name, "ratios": {"a": 2.0}} for name in ("Zen", "Xeon"))
    assert report(there, there) == ["speed: 0 of 1 ratios slower by more than a fifth than committed"]
    assert report(there, here) == [
        "speed: 0 of 1 ratios slower by more than a fifth than committed (here Xeon, there Zen)"
    ]


def test_what_is_slower_is_said_and_only_what_was_run_is_written(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A comparison returns whatever it finds: it is a message, not a failure."""
    file, results = tmp_path / "ratios.json", tmp_path / "bench.json"
    monkeypatch.setattr(ratios, "COMMITTED", file)
    committed = {"machine": "Xeon", "ratios": {"a": 2.0, "b": 3.0}}
    file.write_text(json.dumps(committed))
    machine = {"cpu": {"brand_raw": "Xeon"}, "machine": "x86_64", "node": "a-name"}
    results.write_text(
        json.dumps({"machine_info": machine, "benchmarks": [timed("test_x", 1.0, ratios={"a": 1.0, "c": 5.0})]})
    )
    ratios.main(str(results))
    assert "a: 1x, committed 2x: takes 2.00 times as long" in capsys.readouterr().out
    assert json.loads(file.read_text()) == committed, "not written without --write"
    ratios.main(str(results), "--write")
    assert json.loads(file.read_text()) == {"machine": "Xeon", "ratios": {"a": 1.0, "b": 3.0, "c": 5.0}}


def test_the_committed_file_has_every_pair_and_names_no_machine_but_by_its_processor() -> None:
    held = json.loads(COMMITTED.read_text(encoding="utf-8"))
    assert set(held) == {"machine", "ratios"}
    assert set(PAIRS) <= set(held["ratios"])
    assert all(value > 0 for value in held["ratios"].values())
