"""A promoted version is taken over between two requests; one that cannot be loaded leaves the old one serving."""

from __future__ import annotations

import dataclasses

import pytest

from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from pipeline.model import BlindUSRNet
from pipeline.model.weights import save_model
from pipeline.registry import versions
from pipeline.registry.versions import Version
from pipeline.serving import model
from pipeline.serving.model import LiveModel, Served


class Registry:
    """An alias that a test moves, and versions that it breaks."""

    def __init__(self, served: Served) -> None:
        self.served, self.champion, self.broken, self.loads = served, 1, set(), []
        self.away = False

    def find(self, uri: str) -> Version:
        if self.away:
            raise BadRequestError("the registry cannot be reached")
        number = self.champion if uri.endswith("@champion") else int(uri.rpartition("/")[2])
        return Version("m", number, (), 0, "", {}, "")

    def load(self, uri: str, precision: str) -> Served:
        assert precision == "float32"
        version = self.find(uri)
        number = version.number
        self.loads.append(number)
        if number in self.broken:
            raise ArtefactError(f"version {number} is\ndamaged")
        return dataclasses.replace(self.served, name=version.uri, version=number)


@pytest.fixture
def store(monkeypatch, live) -> Registry:
    fake = Registry(live.current)
    monkeypatch.setattr(model, "load", fake.load)
    monkeypatch.setattr(versions, "find", fake.find)
    return fake


@pytest.fixture
def log() -> list[str]:
    return []


def test_the_alias_is_followed_and_a_request_keeps_the_model_it_began_with(store, log):
    live = LiveModel("models:/m@champion", log.append)
    assert live.follows
    held = live.current
    live.refresh()
    assert (live.current is held, store.loads) == (True, [1]), "nothing new, nothing loaded"
    store.champion = 2
    live.refresh()
    assert (live.current.version, held.version) == (2, 1)
    assert log == ["models:/m@champion is now version 2; models:/m/1 is no longer served"]
    store.champion = 1  # rolled back
    live.refresh()
    assert live.current.version == 1


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_and_is_said_once(store, log, monkeypatch):
    live = LiveModel("models:/m@champion", log.append)
    store.champion, store.broken = 2, {2}
    for _ in range(3):
        live.refresh()
    assert live.current.version == 1
    assert (live.refused.name, live.refused.text) == ("models:/m/2", "version 2 is damaged")
    assert "missing, damaged" in live.refused.error
    assert log == ["models:/m/2 cannot be loaded, models:/m/1 stays in use: version 2 is damaged"]
    assert store.loads == [1, 2], "not fetched again at every look"

    monkeypatch.setattr(model, "_RETRY_S", 0.0)
    store.broken = set()  # the storage is back
    live.refresh()
    assert (live.current.version, live.refused) == (2, None)


def test_a_broken_version_that_is_rolled_back_is_no_complaint_any_more(store, log):
    live = LiveModel("models:/m@champion", log.append)
    store.champion, store.broken = 2, {2}
    live.refresh()
    store.champion = 1
    live.refresh()
    assert (live.current.version, live.refused) == (1, None)
    store.champion = 3
    live.refresh()
    assert live.current.version == 3


def test_a_registry_that_is_away_is_said_and_survived(store, log):
    live = LiveModel("models:/m@champion", log.append)
    store.away = True
    live.refresh()
    assert live.current.version == 1
    assert live.refused.text == "the registry cannot be reached"
    assert "the alias cannot be looked up, models:/m/1 stays in use" in log[0]
    store.away = False
    live.refresh()
    assert live.refused is None


def test_what_is_served_is_named_without_its_place_and_by_its_digests(folder, live):
    about = live.current.about()
    assert about["name"] == "small"
    assert about["sha256"]["weights.safetensors"] == live.current.restorer.digest
    assert (about["scales"], about["kernel_side"], live.follows) == ([2], 11, False)


def test_a_model_that_cannot_estimate_a_kernel_is_refused(folder, live, tmp_path):
    network = live.current.restorer.network
    assert isinstance(network, BlindUSRNet)
    save_model(network.restorer, tmp_path, {})
    with pytest.raises(BadRequestError, match="cannot estimate a kernel"):
        model.load(str(tmp_path))
