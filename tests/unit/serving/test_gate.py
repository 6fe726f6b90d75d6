"""The gate: slow, large or frequent requests only delay their own client; a replica's death is an ordinary answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from pipeline.serving import gate as gate_module
from pipeline.serving import transfers
from pipeline.serving.gate import Gate
from pipeline.serving.settings import ServeSettings
from pipeline.serving.transfers import client_key
from tests.unit.serving.asgi import Reply, call, gated

App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setattr(transfers, "GRACE_S", 0.2)
    monkeypatch.setattr(gate_module, "_LINGER_S", 0.3)
    monkeypatch.setattr(gate_module, "_LINGER_IDLE_S", 0.1)


def gate(app: App | None = None, **settings: object) -> Gate:
    return Gate(app or echo, ServeSettings(**settings))


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with the body and what else came, once the body is there."""
    message = await receive()
    assert not message["more_body"]
    headers = [(b"content-type", b"text/plain"), (b"x-got", repr(dict(scope["headers"])).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": message["body"]})


async def trickle(count: int = 100000, pause: float = 0.01, part: bytes = b"x") -> AsyncIterator[bytes]:
    for _ in range(count):
        yield part
        await asyncio.sleep(pause)


def test_nine_slow_uploads_of_one_client_keep_nobody_else_out(live, png):
    async def scenario() -> tuple[list[Reply], Reply, Reply]:
        app = gated(live, queue=0)
        slow = [asyncio.create_task(call(app, "POST", "/restore", trickle())) for _ in range(9)]
        await asyncio.sleep(0.05)
        other = await call(app, "POST", "/restore?sigma=0.01", png, client="192.0.2.7")
        replies = await asyncio.gather(*slow)
        return replies, other, await call(app, "POST", "/restore?sigma=0.01", png)

    replies, other, after = asyncio.run(scenario())
    assert [other.status, after.status] == [200, 200]
    assert sorted(reply.status for reply in replies) == [408] * 4 + [429] * 5
    for reply in replies:
        assert reply.error
        assert (reply.status == 429) == ("retry-after" in reply.headers)


def test_uploads_are_limited_in_all_as_well():
    async def scenario() -> list[Reply]:
        app = gate(uploads=3)
        slow = [asyncio.create_task(call(app, "POST", "/restore", trickle(), client=f"10.0.0.{i}")) for i in range(5)]
        return await asyncio.gather(*slow)

    assert sorted(reply.status for reply in asyncio.run(scenario())) == [408, 408, 408, 429, 429]


@pytest.mark.parametrize(("rate", "status"), [(50, 200), (5000, 408)])
def test_the_rate_decides_who_is_slow(rate, status):
    """About 1,000 bytes a second for half a second, with a grace of 0.2 s."""
    reply = asyncio.run(call(gate(min_rate=rate), "POST", "/restore", trickle(50, 0.01, bytes(10))))
    assert reply.status == status


def test_a_body_in_many_parts_comes_through_as_one():
    parts = [bytes([i]) * i for i in range(100)]

    async def body() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    assert asyncio.run(call(gate(), "POST", "/restore", body())).body == b"".join(parts)


def test_who_hangs_up_while_sending_gives_everything_back():
    async def scenario() -> None:
        app, messages = gate(uploads=1), asyncio.Queue[dict[str, Any]]()
        for _ in range(3):
            messages.put_nowait({"type": "http.request", "body": b"x", "more_body": True})
            messages.put_nowait({"type": "http.disconnect"})
            sent: list[object] = []
            scope = {"type": "http", "method": "POST", "path": "/restore", "headers": [], "client": ("10.0.0.1", 1)}

            async def send(message: object, sent: list[object] = sent) -> None:
                sent.append(message)

            await app(scope, messages.get, send)
            assert sent == []
        assert (app._transfers.uploads, dict(app._transfers.by_client), app._forwarded) == (0, {}, 0)

    asyncio.run(scenario())


async def silent(_: object, receive: Any, __: object) -> None:
    await receive()


async def broken(_: object, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise ConnectionError("the actor died at /root/ray")


async def halved(scope: object, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})


async def no_route(_: object, __: object, send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"Path '/restore' not found. Ping http://.../-/routes"})


async def draining(_: object, __: object, send: Any) -> None:
    headers = [(b"content-type", b"text/plain"), (b"retry-after", b"3")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": b"Deployment unavailable\nat /root/x"})


@pytest.mark.parametrize("app", [silent, broken, halved, no_route, draining])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_replica_that_does_not_answer_is_a_503_that_says_when_to_come_again(app, method):
    reply = asyncio.run(call(gate(app), method, "/restore", b"" if method == "GET" else b"image"))
    assert (reply.status, reply.headers["content-type"]) == (503, "application/json")
    assert int(reply.headers["retry-after"]) >= 1
    assert "/root" not in reply.error


@pytest.mark.parametrize(("method", "status"), [("GET", 503), ("POST", 504)])
def test_a_replica_that_hangs_is_not_waited_for_without_end(monkeypatch, method, status):
    monkeypatch.setattr(gate_module, "_PAGE_S", 0.1)
    monkeypatch.setattr(gate_module, "_BEYOND_S", 0.1)

    async def hangs(*_: object) -> None:
        await asyncio.sleep(60)

    body = b"" if method == "GET" else b"image"
    assert asyncio.run(call(gate(hangs, timeout=0.1), method, "/restore", body)).status == status


def test_what_waits_while_no_replica_runs_is_bounded():
    async def scenario() -> list[int]:
        go = asyncio.Event()

        async def late(scope: dict[str, Any], receive: Any, send: Any) -> None:
            await go.wait()
            await echo(scope, receive, send)

        app = gate(late, queue=1, uploads=3)
        tasks = [asyncio.create_task(call(app, "POST", "/restore", b"x", client=f"10.1.0.{i}")) for i in range(9)]
        await asyncio.sleep(0.05)
        go.set()
        return [reply.status for reply in await asyncio.gather(*tasks)]

    assert sorted(asyncio.run(scenario())) == [200] * 5 + [429] * 4


def test_the_answer_is_there_before_the_rest_of_the_request_is_read_and_that_is_bounded():
    log: list[str] = []

    async def scenario() -> None:
        app = gate(max_upload=100)

        async def receive() -> dict[str, Any]:
            log.append("read")
            return {"type": "http.request", "body": bytes(60), "more_body": True}

        async def send(message: dict[str, Any]) -> None:
            log.append(f"{message['type']} {message.get('more_body')}")
            if message["type"] == "http.response.start":
                assert (b"connection", b"close") in message["headers"]

        await app({"type": "http", "method": "POST", "path": "/restore", "headers": []}, receive, send)

    asyncio.run(scenario())
    assert log[:4] == ["read", "read", "http.response.start None", "http.response.body True"]
    assert log[4:] == ["read"] * 14 + ["http.response.body False"]


def test_a_connection_goes_on_after_a_request_that_was_read():
    assert "connection" not in asyncio.run(call(gate(), "POST", "/restore", b"x")).headers
    assert "connection" not in asyncio.run(call(gate(), "GET", "/")).headers


def test_an_answer_that_nobody_reads_is_given_up():
    async def scenario() -> int:
        app, sent = gate(min_rate=1000), 0

        async def large(_: object, __: object, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": bytes(2**20)})

        app._app = large
        messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive() -> dict[str, Any]:
            return next(messages)

        async def send(message: dict[str, Any]) -> None:
            nonlocal sent
            sent += len(message.get("body", b""))
            if sent:
                await asyncio.sleep(60)

        await app({"type": "http", "method": "GET", "path": "/", "headers": [], "client": ("::1", 1)}, receive, send)
        assert not app._transfers.by_client
        return sent

    assert asyncio.run(scenario()) < 2**20


def test_headers_that_speak_to_servers_in_between_are_not_passed_on():
    given = {
        "x-request-timeout-seconds": "0.001",
        "x-request-disconnect-disabled": "?1",
        "serve-multiplexed-model-id": "x",
        "x-request-id": "\xff",
        "x-forwarded-for": "10.0.0.1",
        "accept": "application/json",
        "content-length": "1",
    }
    got = asyncio.run(call(gate(), "POST", "/restore", b"x", given)).headers["x-got"]
    assert got == "{b'accept': b'application/json', b'content-length': b'1'}"
    got = asyncio.run(call(gate(), "GET", "/", headers={"x-request-id": "4f-a.2"})).headers["x-got"]
    assert "b'x-request-id': b'4f-a.2'" in got


def test_a_target_that_is_no_path_is_refused():
    assert asyncio.run(call(gate(no_route), "OPTIONS", "*")).status == 400


def test_a_websocket_is_closed():
    sent: list[dict[str, Any]] = []

    async def scenario() -> None:
        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await gate()({"type": "websocket"}, send, send)

    asyncio.run(scenario())
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    ("client", "key"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("::ffff:192.0.2.1", 5), "192.0.2.1"),
        (("2001:db8:1:2:3::9", 5), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5), "fe80::/64"),
        (("a name", 0), "a name"),
        (None, ""),
    ],
)
def test_a_client_is_an_address_or_a_network_that_one_subscriber_has(client, key):
    assert client_key(client) == key


@pytest.mark.parametrize("value", ["*", "proxy.internal", "10.0.0.0/99", "127.0.0.1;10.0.0.1"])
def test_only_addresses_are_trusted_proxies(value):
    with pytest.raises(ValueError, match="is no address or network"):
        ServeSettings(trusted_proxies=value)


def test_an_error_is_json(live):
    reply = asyncio.run(call(gated(live), "PATCH", "/healthz"))
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert json.loads(reply.body)["error"]


@pytest.mark.parametrize("path", ["/", "/docs", "/healthz", "/openapi.json"])
def test_head_is_get_and_options_says_what_there_is(live, path):
    get, head = (asyncio.run(call(gated(live), method, path)) for method in ("GET", "HEAD"))
    assert (head.status, head.headers["content-type"]) == (200, get.headers["content-type"])
    if path != "/healthz":  # which says how long it has been up
        assert head.headers == get.headers
    options = asyncio.run(call(gated(live), "OPTIONS", path))
    assert (options.status, options.headers["allow"], options.body) == (200, "GET, HEAD, OPTIONS", b"")


EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


async def dies_while_it_streams(_: object, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
    await send({"type": "http.response.body", "body": b'event: queue\ndata: {"ahead": 0}\n\n', "more_body": True})


def test_a_replica_that_dies_while_it_streams_is_a_last_event():
    reply = asyncio.run(call(gate(dies_while_it_streams), "POST", "/restore", b"image"))
    assert reply.status == 200
    first, last, end = reply.body.split(b"\n\n")
    assert (first.split(b"\n")[0], end) == (b"event: queue", b"")
    assert last.startswith(b"event: error\n")
    assert json.loads(last.split(b"data: ")[1])["status"] == 503


def test_events_that_nobody_reads_are_given_up_and_the_replica_is_told():
    told: list[str] = []

    async def scenario() -> int:
        app, sent = gate(min_rate=1000), 0

        async def large(_: object, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
            try:
                for _ in range(10):
                    await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
                    await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                told.append("cancelled")
                raise

        app._app = large
        messages = iter([{"type": "http.request", "body": b"x", "more_body": False}])

        async def receive() -> dict[str, Any]:
            return next(messages)

        async def send(message: dict[str, Any]) -> None:
            nonlocal sent
            sent += len(message.get("body", b""))
            if sent:
                await asyncio.sleep(60)

        scope = {"type": "http", "method": "POST", "path": "/restore", "headers": [], "client": ("::1", 1)}
        await app(scope, receive, send)
        assert not app._transfers.by_client
        return sent

    assert asyncio.run(scenario()) < 2**20
    assert told == ["cancelled"]
