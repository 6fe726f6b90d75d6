"""Ray Train's process group, with workers that are set up before it is made."""

from __future__ import annotations

from collections.abc import Callable

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class ProcessGroup(TorchConfig):
    """Configure the process group of a training.

    Args:
        backend: `gloo` or `nccl`.
        prepare: what every worker does first; a function of a module.
        timeout_s: how long an operation may take.
    """

    def __init__(self, backend: str, prepare: Callable[[], None], timeout_s: int = TorchConfig.timeout_s) -> None:
        super().__init__(backend=backend, timeout_s=timeout_s)
        self.prepare = prepare

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Return the backend, for Ray Train."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group, backend_config) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
        """Set up the workers for Ray Train when they are there, before their process group is."""
        worker_group.execute(backend_config.prepare)
        super().on_start(worker_group, backend_config)
