"""The choice of the network interface for the workers of a node."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import psutil
import pytest
import ray

from pipeline.training.gloo import choose_interface
from pipeline.training.nccl import set_defaults

INTERFACES = {
    name: one.address
    for name, addresses in psutil.net_if_addrs().items()
    for one in addresses
    if one.family == socket.AF_INET
}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A node of Ray's list; its address is the test's to set."""
    found = {"NodeID": "here", "NodeManagerAddress": ""}
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "there", "NodeManagerAddress": "192.0.2.9"}, found])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that it is put back as it was
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    return found


@pytest.mark.parametrize("name", INTERFACES)
def test_the_one_with_the_nodes_address(name: str, node: dict[str, str]):
    node["NodeManagerAddress"] = INTERFACES[name]
    choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == name


def test_none_where_no_interface_has_it(node: dict[str, str]):
    node["NodeManagerAddress"] = "192.0.2.77"
    choose_interface()
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_what_the_environment_says_is_left(node: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    node["NodeManagerAddress"] = "127.0.0.1"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"


@pytest.mark.parametrize(
    "chosen", [{}, {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"}, {"PYTORCH_ALLOC_CONF": ""}]
)
def test_cards_get_an_allocator_that_grows_unless_the_node_says_how(chosen: dict, monkeypatch: pytest.MonkeyPatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    set_defaults()
    found = {name: os.environ[name] for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF") if name in os.environ}
    assert found == (chosen or {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"})
