"""The HTTP interface, without Ray, for replicas and tests."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route

from pipeline.serving.answer import carry_out
from pipeline.serving.describe import ABOUT, RESTORE
from pipeline.serving.errors import TOLD, error_body, retry_headers, status_of
from pipeline.serving.events import EventStream
from pipeline.serving.model import LiveModel
from pipeline.serving.pages import POLICY, docs_page, main_page
from pipeline.serving.request import read_request
from pipeline.serving.settings import ServeSettings
from pipeline.serving.work_queue import WorkQueue

_log = logging.getLogger("pipeline.serving")


def build_app(settings: ServeSettings, live: LiveModel) -> FastAPI:
    """Build the application around a loaded model."""
    # Errors in a form are in the answer; otherwise each such request would add a line to the log.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    queue, started = WorkQueue(settings.queue, settings.timeout), time.monotonic()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(_follow(live, settings.poll)) if live.follows else None
        yield
        if following:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following

    # FastAPI's own pages load scripts from other servers; /docs below needs no network.
    app = FastAPI(title="blind-sr", description=ABOUT, docs_url=None, redoc_url=None, lifespan=lifespan)

    @app.post("/restore", summary="Restore a photograph", openapi_extra=RESTORE, response_class=Response)
    async def restore(request: Request) -> Response:
        asked = await read_request(request, settings)
        if asked.streamed:
            return EventStream(
                queue,
                lambda listener: carry_out(asked, live.current, settings.max_memory, listener),
                windows=asked.options.pictures,
                said=_said,
            )
        async with queue.place() as place:
            answer = await place.run(
                lambda check: carry_out(asked, live.current, settings.max_memory, lambda step: check(step.text()))
            )
        return Response(answer.body, media_type=answer.media_type, headers=answer.headers)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", summary="Which model is served, within which limits")
    async def healthz() -> dict[str, Any]:
        refused = live.refused
        return {
            "status": "ready",
            "model": live.current.about(),
            "alias": live.uri if live.follows else None,
            "refused": {"model": refused.name, "error": refused.error} if refused else None,
            "places": {"taken": queue.taken, "most": queue.most},
            "stopped": queue.stopped,
            "limits": settings.model_dump(include={"max_upload", "max_pixels", "timeout"}),
            "up_seconds": round(time.monotonic() - started, 1),
        }

    @app.api_route("/", methods=["GET", "HEAD"], response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(main_page(), headers=POLICY)

    @app.api_route("/docs", methods=["GET", "HEAD"], response_class=HTMLResponse, include_in_schema=False)
    async def docs(request: Request) -> Response:
        return HTMLResponse(docs_page(app.openapi(), str(request.base_url)), headers=POLICY)

    for kind in (*TOLD, MemoryError, torch.OutOfMemoryError, Exception):
        app.add_exception_handler(kind, _failed)
    app.add_exception_handler(HTTPException, _http_error)
    return app


async def _follow(live: LiveModel, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(live.refresh)


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(error_body(text), status, headers, "application/json")


async def _failed(_: Request, error: Exception) -> Response:
    return _error(*_said(error), retry_headers(error))


def _said(error: Exception) -> tuple[int, str]:
    """Return status and text of an error; the log gets the traceback of an unexpected one, the client its number."""
    if isinstance(error, TOLD):
        return status_of(error), str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return 503, f"out of memory ({type(error).__name__}); send a smaller image"
    number = uuid.uuid4().hex[:8]
    _log.error("internal error %s", number, exc_info=error)
    return 500, f"internal error {number}; the server's log says more"


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer a request for an unknown page or with an unsupported method."""
    assert isinstance(error, HTTPException)
    if error.status_code != 405:
        return _error(error.status_code, f"{request.method}: {error.detail}; the interface is described at docs")
    routes = [route for route in request.app.routes if isinstance(route, Route) and route.path == request.url.path]
    methods = sorted({"OPTIONS"}.union(*(route.methods or () for route in routes)))
    allow = {"Allow": ", ".join(methods)}
    if request.method == "OPTIONS":
        return Response(status_code=200, headers=allow)
    return _error(405, f"{request.method}: {error.detail}; there is {allow['Allow']}", allow)
