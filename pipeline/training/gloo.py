"""CPU workers find each other over the interface by which Ray reaches their nodes.

Left alone, gloo listens where the machine's own name points. Debian and others let it point to a loopback address, and
then workers on different nodes look for each other on themselves.
"""

from __future__ import annotations

import os

import psutil
import ray


def choose_interface() -> None:
    """Tell gloo, in this worker, the interface with the node's address, if one has it.

    GLOO_SOCKET_IFNAME of a node's environment is left as it is.
    """
    here = ray.get_runtime_context().get_node_id()
    address = next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == here)
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            return
