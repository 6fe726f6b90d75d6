"""What is told Ray Data before rows come out of it."""

from __future__ import annotations

import pytest
from ray.data._internal import stats

from kernels_bank.runtime import local_ray, rows


@pytest.mark.parametrize("alone", [False, True])
def test_a_ray_of_our_own_gathers_no_statistics(monkeypatch: pytest.MonkeyPatch, alone: bool):
    """In its driver and its workers; a cluster has a dashboard that shows them."""
    started: list[str] = []
    monkeypatch.setattr(stats, "get_or_create_stats_actor", lambda: started.append("the actor"))
    monkeypatch.setattr(local_ray, "started", {})
    monkeypatch.delenv("BLINDSR_RAY_ALONE", raising=False)
    if alone:
        monkeypatch.setenv("BLINDSR_RAY_ALONE", "1")  # as a worker has it
    rows.leave_out_statistics()
    actor = stats.get_or_create_stats_actor()
    assert started == ([] if alone else ["the actor"])
    if alone:
        assert actor.update_execution_metrics.remote("dataset", [], state={}) is None
        monkeypatch.delenv("BLINDSR_RAY_ALONE")
        assert not local_ray.is_alone()
        monkeypatch.setattr(local_ray, "started", {"raylet": None})
        assert local_ray.is_alone()  # as in the driver
