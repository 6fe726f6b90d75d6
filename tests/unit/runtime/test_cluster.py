"""Where Ray is not: said in one line instead of a wait without end."""

from __future__ import annotations

import socket
import time

import pytest
import ray

from kernels_bank.runtime import cluster
from kernels_bank.runtime.errors import BadRequestError, JobFailedError


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_without_a_cluster(monkeypatch: pytest.MonkeyPatch, form: str):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **settings: pytest.fail("Ray would wait for ever"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        monkeypatch.setenv("RAY_ADDRESS", form.format(free.getsockname()[1]))
        started = time.monotonic()
        with pytest.raises(BadRequestError, match=r"no Ray cluster answers there \(Connection refused\)"):
            cluster.connect()
    assert time.monotonic() - started < 10


def test_a_local_ray_that_does_not_start(monkeypatch: pytest.MonkeyPatch):
    def overloaded(**settings: object) -> None:
        raise Exception("The current node timed out during startup.\nSee the logs")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", overloaded)
    with pytest.raises(JobFailedError, match=r"run the command again: The current node timed out during startup\.$"):
        cluster.connect()
