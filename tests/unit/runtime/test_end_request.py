"""Signals that come in a burst are one request to end; a later one is another."""

import pytest

from kernels_bank.runtime import end_request


def test_a_burst_is_one_request_and_what_comes_later_another(monkeypatch: pytest.MonkeyPatch):
    now, calls = [100.0], []
    monkeypatch.setattr(end_request.time, "monotonic", lambda: now[0])
    handle = end_request.handler(lambda: calls.append("first"), lambda: calls.append("later"))
    for now[0] in (100.0, 100.001, 100.9, 101.5, 101.6):
        handle(15, None)
    assert calls == ["first", "later", "later"]
