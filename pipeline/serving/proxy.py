"""The gate put into Ray Serve's HTTP proxy, which imports `middlewares` by its name when it starts.

The proxy is a process of Ray's own. What it needs to know travels in its environment.
"""

from __future__ import annotations

import logging
import os

import uvicorn.config
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from pipeline.serving.gate import Gate
from pipeline.serving.settings import ServeSettings

_SETTINGS = "BLIND_SR_SERVE_SETTINGS"


def environment(settings: ServeSettings) -> dict[str, str]:
    """Return the environment variables of the proxy."""
    return {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.middlewares",
        _SETTINGS: settings.model_dump_json(),
        # uvicorn takes a client's address from X-Forwarded-For of these, and by itself of any process on this machine.
        "FORWARDED_ALLOW_IPS": settings.trusted_proxies,
        # Serve gives its proxy 5 s to start and ends it then: too few on a busy machine.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    }


def middlewares() -> list[Middleware]:
    """Return what Ray Serve's proxy puts around itself.

    It is called in the proxy before its HTTP server is made. That server is to ignore `Upgrade: websocket`, as HTTP
    allows: else it does not answer some upgrades at all, and Serve has no setting to turn WebSockets off.
    """
    uvicorn.config.WS_PROTOCOLS["auto"] = None
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # else each such request is two lines of the log
    return [Middleware(_gate, ServeSettings.model_validate_json(os.environ[_SETTINGS]))]


def _gate(app: ASGIApp, settings: ServeSettings) -> Gate:
    return Gate(app, settings)
