"""The gate as middleware of Ray Serve's HTTP proxy, which imports `middlewares` by name when it starts.

The proxy is a process of Ray, which gets its settings by its environment.
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
        # uvicorn takes a client's address from X-Forwarded-For of these; by default of any process on this machine.
        "FORWARDED_ALLOW_IPS": settings.trusted_proxies,
        # Serve ends its proxy if it does not start within 5 s, which is too short on a busy machine.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    }


def middlewares() -> list[Middleware]:
    """Return the middlewares for Ray Serve's proxy.

    The proxy calls this before it makes its HTTP server. The server must ignore `Upgrade: websocket`, as HTTP allows:
    otherwise it does not answer some upgrades at all, and Serve has no setting to turn WebSockets off.
    """
    uvicorn.config.WS_PROTOCOLS["auto"] = None
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # otherwise each such request adds two lines to the log
    return [Middleware(_gate, ServeSettings.model_validate_json(os.environ[_SETTINGS]))]


def _gate(app: ASGIApp, settings: ServeSettings) -> Gate:
    return Gate(app, settings)
