"""Make CPU workers connect over the network interface by which Ray reaches their nodes.

By default, gloo listens on the address of the machine's own host name. On Debian and others this is a loopback address,
so workers on different nodes would each try to connect to themselves.
"""

from __future__ import annotations

import os

import psutil
import ray


def choose_interface() -> None:
    """Choose gloo's interface in this worker: the one with the node's address, if there is one.

    GLOO_SOCKET_IFNAME in a node's environment takes precedence.
    """
    here = ray.get_runtime_context().get_node_id()
    address = next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == here)
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            return
