"""Nodes of the local cluster start side by side; one that gives up is started again."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

INFRA = Path(__file__).parents[3] / "infra"


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(INFRA)
    found = importlib.import_module("local_cluster")
    monkeypatch.setattr(found, "of_role", lambda *_: set())
    return found


class Nodes:
    """What `ray start` and the dashboard say: a start ends with a status, and its node is alive a while later."""

    def __init__(self, statuses: dict[int, list[int | None]]) -> None:
        self.statuses, self.started, self.asked = statuses, list[int](), 0

    def start(self, folder: Path, settings: object, number: int) -> SimpleNamespace:
        (folder / f"node-{number}.log").write_text("starting\ntoo slow\n")
        self.started.append(number)
        status = self.statuses[number].pop(0)
        return SimpleNamespace(poll=lambda: status)

    def alive(self, folder: Path, settings: object) -> list[int]:
        self.asked += 1
        whole = [number for number, left in self.statuses.items() if not left]
        return whole if self.asked > 2 else []


def test_all_are_started_before_one_is_waited_for(launcher, monkeypatch, tmp_path, capsys):
    nodes = Nodes({1: [None], 2: [0], 3: [0]})
    monkeypatch.setattr(launcher, "start_node", nodes.start)
    monkeypatch.setattr(launcher, "alive_nodes", nodes.alive)
    launcher.join(tmp_path, None, range(1, 4))
    assert nodes.started == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_one_that_gave_up_is_started_again_and_the_others_are_not(launcher, monkeypatch, tmp_path, capsys):
    nodes = Nodes({1: [0], 2: [1, 0]})
    monkeypatch.setattr(launcher, "start_node", nodes.start)
    monkeypatch.setattr(launcher, "alive_nodes", nodes.alive)
    launcher.join(tmp_path, None, [1, 2])
    assert nodes.started == [1, 2, 2]
    assert capsys.readouterr().err == "node-2 did not start (too slow); once more\n"


def test_nodes_that_never_come_are_named(launcher, monkeypatch, tmp_path):
    monkeypatch.setattr(launcher, "PATIENCE_S", 0.0)
    nodes = Nodes({1: [0], 2: [None, None]})
    monkeypatch.setattr(launcher, "start_node", nodes.start)
    monkeypatch.setattr(launcher, "alive_nodes", lambda *_: [1])
    with pytest.raises(launcher.ClusterError, match=r"^node-2 did not come up within 0 s"):
        launcher.join(tmp_path, None, [1, 2])
