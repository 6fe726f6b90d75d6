"""Ray Train without the actors that have nothing to do, and with all else that it does by itself."""

from __future__ import annotations

import pytest
import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import datasets
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from pipeline.training.trainer import Trainer


def test_two_actors_are_not_started_and_all_other_callbacks_are_there(monkeypatch: pytest.MonkeyPatch):
    theirs, ours = (made(lambda: None)._create_default_callbacks() for made in (TorchTrainer, Trainer))
    kept = [type(callback) for callback in theirs if not isinstance(callback, PlacementGroupCleanerCallback)]
    assert len(kept) == len(theirs) - 1
    assert all(isinstance(mine, base) for mine, base in zip(ours, kept, strict=True))

    # Ray Train's own makes an actor for the datasets, though there are none.
    monkeypatch.setattr(ray, "remote", lambda actor: pytest.fail(f"an actor {actor.__name__}"))
    (settings,) = (callback for callback in ours if isinstance(callback, datasets.DatasetsCallback))
    assert settings.before_init_train_context([]) == {}
