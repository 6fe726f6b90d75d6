"""The doctor's limits: what fails, what only warns, and that a remedy stands beside each."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.doctor import judge
from pipeline.doctor.finding import Finding, failed, show
from pipeline.doctor.node import Facts, StorageSpeed, facts

GOOD = Facts(
    host="a",
    versions={"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "numpy": "2.4.6", "mlflow": "3.17.2"},
    shm_total=8 * 2**30,
    open_files=65536,
    max_processes=65536,
    disk_free_share=0.5,
    disk_path="/tmp",
    nvidia_devices=0,
)


@pytest.mark.parametrize(
    ("package", "theirs", "status"),
    [("ray", "2.59.0", "fail"), ("python", "3.12.1", "fail"), ("numpy", "2.3.0", "warn"), ("torch", "missing", "fail")],
)
def test_another_version_is_named_with_its_node(package: str, theirs: str, status: str):
    odd = replace(GOOD, versions=GOOD.versions | {package: theirs})
    (finding,) = judge.versions(GOOD, {"good": GOOD, "odd": odd})
    assert (finding.where, finding.status) == ("odd", status)
    assert f"{package} {theirs} (here {GOOD.versions[package]})" in finding.found
    assert finding.remedy


def test_equal_versions_are_one_line():
    (finding,) = judge.versions(GOOD, {"a": GOOD, "b": GOOD})
    assert (finding.where, finding.status) == ("2 nodes", "ok")


@given(offset=st.floats(-4000, 4000), within=st.floats(0, 400))
def test_a_clock_is_blamed_only_for_what_is_certain(offset: float, within: float):
    status = judge.clock_skew("a", offset, within).status
    certain = max(0.0, abs(offset) - within)
    assert status == ("fail" if certain > 300 else "warn" if certain > 2 else "ok")


def test_the_limits():
    cases = [
        (judge.limits("a", GOOD), "ok"),
        (judge.limits("a", replace(GOOD, open_files=1024)), "fail"),
        (judge.limits("a", replace(GOOD, open_files=20000)), "warn"),
        (judge.limits("a", replace(GOOD, max_processes=100)), "fail"),
        (judge.disk("a", GOOD), "ok"),
        (judge.disk("a", replace(GOOD, disk_free_share=0.08)), "warn"),
        (judge.disk("a", replace(GOOD, disk_free_share=0.04)), "fail"),
        (judge.shared_memory("a", GOOD, 8 * 2**30), "ok"),
        (judge.shared_memory("a", replace(GOOD, shm_total=64 * 2**20), 2**30), "warn"),
        (judge.storage_speed("s", StorageSpeed(20, 100, 100, "t")), "ok"),
        (judge.storage_speed("s", StorageSpeed(2000, 100, 100, "t")), "warn"),
        (judge.storage_speed("s", StorageSpeed(20, 100, 1, "t")), "warn"),
        (judge.enough_cards(2, 1.0)[0], "fail"),
        (judge.enough_cards(2, 2.0)[0], "ok"),
    ]
    for finding, status in cases:
        assert finding.status == status, finding
        assert bool(finding.remedy) == (status != "ok"), finding


def test_cards_that_ray_does_not_know():
    assert judge.enough_cards(0, 0) == []
    assert judge.hidden_cards("a", replace(GOOD, nvidia_devices=2), 2) == []
    (finding,) = judge.hidden_cards("a", replace(GOOD, nvidia_devices=2), 0)
    assert finding.status == "warn"


def test_a_folder_that_each_node_has_for_itself():
    assert judge.shared_storage("/data", {"a": "1", "b": "2"}, {"1", "2"}).status == "ok"
    finding = judge.shared_storage("/data", {"a": "1", "b": "2"}, {"1"})
    assert finding.status == "fail"
    assert "what b wrote is not seen here" in finding.found


def test_this_machine_says_something_about_itself():
    here = facts()
    assert here.versions["ray"] != "missing"
    assert 0 < here.disk_free_share < 1
    assert here.open_files > 0


def test_json_and_table(capsys: pytest.CaptureFixture[str]):
    findings = [Finding("a", "here", "ok", "[x]"), Finding("b", "there", "fail", "bad", "mend it")]
    assert failed(findings) == 1
    show(findings, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["ok"] is False
    assert [f["check"] for f in shown["findings"]] == ["a", "b"]
    show(findings, as_json=False)
    table = capsys.readouterr().out
    assert "mend it" in table
    assert "[x]" in table
