"""A restoration as events: what comes in which order, what is refused before, and work that ends with its client."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.images.decode import decode_photograph
from pipeline.images.encode import encode_png
from pipeline.inference.progress import Step
from pipeline.serving import app as app_module
from pipeline.serving import events as events_module
from pipeline.serving.answer import Answer
from pipeline.serving.app import build_app
from pipeline.serving.settings import ServeSettings
from tests.helpers.events import parse
from tests.unit.serving.asgi import ask, call, gated

EVENTS = {"accept": "text/event-stream"}


def test_steps_come_before_the_result_which_is_the_json_answer(live, png):
    reply = ask(live, "POST", "/restore", png, EVENTS)
    assert (reply.status, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert (reply.headers["cache-control"], reply.headers["x-accel-buffering"]) == ("no-store", "no")
    assert "content-length" not in reply.headers
    found = parse(reply.body)
    assert found[0] == ("queue", {"ahead": 0})
    assert [name for name, _ in found[1:]] == ["step"] * (len(found) - 2) + ["result"]
    steps = [data for name, data in found if name == "step"]
    assert [step["share"] for step in steps] == sorted(step["share"] for step in steps)
    assert steps[-1]["share"] == 1
    assert steps[-1]["seconds_left"] == 0
    assert {step["stage"] for step in steps} == {"place", "window"}
    plain = ask(live, "POST", "/restore?format=json", png).json
    assert {**found[-1][1], "seconds": 0} == {**plain, "seconds": 0}


def test_finished_windows_are_sent_where_pictures_are_asked_for(live, photo, monkeypatch):
    from pipeline.inference import windows

    whole = windows.plan_windows

    def cut(network, height, width, settings, **rest):
        rest["largest"] = 200 * 200  # as if memory were short
        return whole(network, height, width, settings, **rest)

    monkeypatch.setattr(windows, "plan_windows", cut)
    image = encode_png(np.tile(photo, (7, 7, 1)))
    found = parse(ask(live, "POST", "/restore?pictures=true&sigma=0.02", image, EVENTS).body)
    sent = [data for name, data in found if name == "window"]
    result = found[-1][1]
    assert len(sent) == result["windows"] > 1
    restored = decode_photograph(base64.b64decode(result["image"])).pixels
    for part in sent:
        pixels = decode_photograph(base64.b64decode(part["image"])).pixels
        assert pixels.shape == (part["height"], part["width"], 3)
        own = restored[part["top"] : part["top"] + part["height"], part["left"] : part["left"] + part["width"]]
        assert np.abs(pixels.astype(float) - own).mean() < 8
    assert "window" not in {name for name, _ in parse(ask(live, "POST", "/restore?sigma=0.02", image, EVENTS).body)}


def test_what_is_refused_at_once_is_an_answer_and_what_fails_later_an_event(live, png):
    refused = ask(live, "POST", "/restore?scale=two", png, EVENTS)
    assert (refused.status, "scale: " in refused.error) == (400, True)
    refused = ask(live, "POST", "/restore?format=png", png, EVENTS)
    assert (refused.status, "ends with json" in refused.error) == (400, True)
    late = ask(live, "POST", "/restore", png[: len(png) // 2], EVENTS)
    assert late.status == 200
    assert parse(late.body)[-1] == ("error", {"status": 400, "error": "damaged pixel data"})


class Slow:
    """In place of a restoration: many small steps, counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: int = 1000) -> None:
        self.taken, self.begun, self._steps = 0, threading.Event(), steps
        monkeypatch.setattr(app_module, "carry_out", self)

    def __call__(self, request: Any, served: Any, max_memory: int, on_step: Callable[[Step], None]) -> Answer:
        self.begun.set()
        for number in range(self._steps):
            on_step(Step("window", number, self._steps, number / self._steps))
            self.taken += 1
            time.sleep(0.005)
        return Answer(b"{}", "application/json", {})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def health(app: Any) -> dict[str, Any]:
    return (await call(app, "GET", "/healthz")).json


@pytest.mark.parametrize("headers", [{}, EVENTS], ids=["plain", "events"])
def test_work_whose_client_left_is_stopped_at_its_next_step(live, png, monkeypatch, headers, caplog):
    slow = Slow(monkeypatch)

    async def scenario() -> None:
        app = build_app(ServeSettings(queue=1), live)
        first = asyncio.create_task(call(app, "POST", "/restore", png, headers))
        await until(lambda: slow.taken > 3)
        waiting = asyncio.create_task(call(app, "POST", "/restore", png, headers))
        await asyncio.sleep(0.05)
        assert (await health(app))["places"]["taken"] == 2
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (await health(app))["places"]["taken"] == 1, "one that waited gives its place back at once"
        seen = slow.taken
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        async with asyncio.timeout(5):
            while (after := await health(app))["places"]["taken"]:
                await asyncio.sleep(0.005)
        assert after["stopped"] == 2
        assert slow.taken <= seen + 10 < 1000

    asyncio.run(scenario())
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "the client is gone: a request that waited is dropped"
    assert lines[1].startswith("the client is gone: a restoration is stopped after ")
    assert " of 1000" in lines[1]
    assert len(lines) == 2


def test_work_whose_time_is_over_is_stopped_as_well(live, png, monkeypatch):
    slow = Slow(monkeypatch)

    async def scenario() -> None:
        app = build_app(ServeSettings(timeout=0.1), live)
        reply = await call(app, "POST", "/restore", png, EVENTS)
        assert parse(reply.body)[-1][1]["status"] == 504
        async with asyncio.timeout(5):
            while (await health(app))["places"]["taken"]:
                await asyncio.sleep(0.005)

    asyncio.run(scenario())
    assert slow.taken < 1000


def test_who_waits_is_told_how_many_are_ahead(live, png, monkeypatch):
    slow = Slow(monkeypatch, steps=20)

    async def scenario() -> list[bytes]:
        app = build_app(ServeSettings(queue=2), live)
        tasks = []
        for _ in range(3):
            tasks.append(asyncio.create_task(call(app, "POST", "/restore", png, EVENTS)))
            await asyncio.sleep(0.01)
        assert (await call(app, "POST", "/restore", png, EVENTS)).status == 429
        return [reply.body for reply in await asyncio.gather(*tasks)]

    told = [[data["ahead"] for name, data in parse(body) if name == "queue"] for body in (asyncio.run(scenario()))]
    assert told == [[0], [1, 0], [2, 1, 0]]
    assert slow.taken == 60


def test_a_silent_stream_is_kept_alive_by_comments(live, png, monkeypatch):
    monkeypatch.setattr(events_module, "_SILENCE_S", 0.05)
    monkeypatch.setattr(events_module, "_APART_S", 60)
    monkeypatch.setattr(app_module, "carry_out", lambda *_: time.sleep(0.3) or Answer(b"{}", "application/json", {}))
    body = ask(live, "POST", "/restore", png, EVENTS).body
    assert 2 <= body.count(b": still there\n\n") <= 6
    assert [name for name, _ in parse(body)] == ["queue", "result"]


def test_a_client_that_hangs_up_at_the_gate_ends_what_the_replica_does(live, png, monkeypatch):
    """The gate says so to Ray Serve, which cancels the replica's task; here the application sees it itself."""
    slow = Slow(monkeypatch)

    async def scenario() -> None:
        app = gated(live)
        inner, messages = app._app, asyncio.Queue[dict[str, Any]]()

        async def serve(scope: Any, receive: Any, send: Any) -> None:
            body = await receive()
            once = asyncio.Queue[dict[str, Any]]()
            once.put_nowait(body)
            task = asyncio.create_task(inner(scope, once.get, send))
            while (await receive())["type"] != "http.disconnect":
                pass
            task.cancel()

        app._app = serve
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/restore",
            "query_string": b"",
            "headers": [(b"accept", b"text/event-stream"), (b"content-length", str(len(png)).encode())],
            "client": ("10.0.0.1", 1),
        }
        messages.put_nowait({"type": "http.request", "body": png, "more_body": False})
        task = asyncio.create_task(app(scope, messages.get, send))
        await until(lambda: slow.taken > 3)
        assert sent[0]["type"] == "http.response.start"
        assert b"event: step" in b"".join(message.get("body", b"") for message in sent)
        seen = slow.taken
        messages.put_nowait({"type": "http.disconnect"})
        await task
        await asyncio.sleep(0.1)
        assert slow.taken <= seen + 10
        assert (app._forwarded, dict(app._transfers.by_client)) == (0, {})
        assert all(message.get("more_body", True) for message in sent), "to a client that is gone no end is sent"

    asyncio.run(scenario())
