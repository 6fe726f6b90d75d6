"""CPU workers find each other over the interface by which Ray reaches their nodes.

Left alone, gloo listens where the machine's own name points. Debian and others let it point to a loopback address, and
then workers on different nodes look for each other on themselves.
"""

from __future__ import annotations

import os

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class GlooConfig(TorchConfig):
    """Configure Ray Train's process group on CPUs; GLOO_SOCKET_IFNAME of a node's environment is left as it is."""

    def __init__(self) -> None:
        super().__init__(backend="gloo")

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Return the backend, for Ray Train."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group, backend_config) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
        """Set up the workers for Ray Train when they are there, before their process group is."""
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """Tell gloo, in this worker, the interface with the node's address, if one has it."""
    here = ray.get_runtime_context().get_node_id()
    address = next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == here)
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            return
