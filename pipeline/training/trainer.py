"""Ray Train's trainer, without the helper processes that have nothing to do here."""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.callbacks import datasets, placement_group_callback
from ray.train.v2.torch.torch_trainer import TorchTrainer


class Trainer(TorchTrainer):
    """Train without Ray Train's `DatasetManager` and `PlacementGroupCleaner`.

    Each is a process that imports Ray Data, two seconds of CPU at every start of a training. The first deals out
    datasets; the workers here make their own. The second frees the workers' places when the controller dies before
    the driver; here the driver ends with the controller, and Ray frees what a driver held.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [
            _DataSettings(self.train_run_context, {}) if isinstance(callback, datasets.DatasetsCallback) else callback
            for callback in callbacks
            if not isinstance(callback, placement_group_callback.PlacementGroupCleanerCallback)
        ]


class _DataSettings(datasets.DatasetsCallback):
    """Hand the driver's settings of Ray Data to the workers, and no datasets."""

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        return {}
