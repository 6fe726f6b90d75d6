"""Ray Train's process group, with a setup of the workers before it is created."""

from __future__ import annotations

from collections.abc import Callable

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class ProcessGroup(TorchConfig):
    """Configure the process group of a training.

    Args:
        backend: `gloo` or `nccl`.
        prepare: module-level function that every worker calls first.
        timeout_s: timeout of an operation in seconds.
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
        """Set up the workers after they have started, before their process group is created; Ray Train calls this."""
        worker_group.execute(backend_config.prepare)
        super().on_start(worker_group, backend_config)
