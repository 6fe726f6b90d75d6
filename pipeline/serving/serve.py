"""Ray Serve around the application: start, operation, and complete shutdown."""

from __future__ import annotations

import http.client
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kernels_bank.runtime import watch
from kernels_bank.runtime.cluster import connect
from kernels_bank.runtime.cpus import usable_cpus
from kernels_bank.runtime.errors import BadRequestError, JobFailedError
from pipeline.catalogue import REGISTRY
from pipeline.serving import proxy
from pipeline.serving.model import Served, load
from pipeline.serving.settings import ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

_APP = "blind-sr"
_PATIENCE_S = 60.0  # longest wait for the first answer, on a busy machine


def planned(settings: ServeSettings) -> str:
    """Describe what would be served. The model is loaded and the address tried, but nothing is started.

    Raises:
        BadRequestError: there is no such model, or the address is in use or not of this machine.
    """
    served = _checked(settings)
    scales = ", ".join(f"x{scale}" for scale in served.restorer.scales)
    size, memory = settings.max_upload.human_readable(), settings.max_memory.human_readable()
    return f"""would serve at {address(settings)}
  model          {served.name}, weights {served.restorer.digest[:12]}, {scales}
  a request      at most {size}, {settings.max_pixels / 1e6:.3g} megapixels, {settings.timeout:g} s
  replicas       {settings.replicas}; at each {settings.queue} requests waiting and {memory} of memory"""


def serve(settings: ServeSettings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        BadRequestError: as in `planned`, or Serve is already running on this cluster.
        JobFailedError: Ray or Serve did not start.
        KeyboardInterrupt: a signal came before the start was complete.
    """
    served = _checked(settings)
    _connect(settings)
    try:
        _start(settings)
        print(f"{served.name} at {address(settings)}; Ctrl-C ends it", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    finally:
        _stop()


def address(settings: ServeSettings) -> str:
    """Return the page's URL."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{settings.port}"


def _checked(settings: ServeSettings) -> Served:
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(found[0], found[1]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
    except UnicodeError as error:
        raise BadRequestError(f"--host {settings.host}: no host is called so; choose another --host") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadRequestError(f"{settings.host}:{settings.port}: {reason}; choose another --host or --port") from error
    return load(settings.model, settings.precision)


def _connect(settings: ServeSettings) -> None:
    """Connect to Ray; its processes get the settings of Serve's proxy by their environment."""
    os.environ |= (environment := proxy.environment(settings))
    if settings.model.startswith(REGISTRY):
        from pipeline.registry.versions import store_uri

        os.environ["MLFLOW_TRACKING_URI"] = store_uri()  # replicas inherit it, with the absolute path of an SQLite file
    connect(min_cpus=settings.replicas + 1, verbose=True, environment=environment)
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)

    if serve.status().proxies:
        raise BadRequestError("Ray Serve runs on this cluster already, with an address of its own; end it first")


def _start(settings: ServeSettings) -> None:
    """Start Serve with the application; return when it answers."""
    import ray
    from ray import serve

    quiet: dict[str, Any] = {"log_level": "WARNING", "enable_access_log": False}
    try:
        listen = {"host": settings.host, "port": settings.port}
        serve.start(proxy_location="HeadOnly", http_options=listen, logging_config=quiet)
        cards = ray.cluster_resources().get("GPU", 0) >= settings.replicas
        deploy = serve.deployment(
            name="restore",
            num_replicas=settings.replicas,
            max_ongoing_requests=1000,  # the application itself limits requests, with status 429
            graceful_shutdown_timeout_s=5,
            health_check_period_s=1,  # how soon a replica's death is noticed
            ray_actor_options={"num_cpus": 1, "num_gpus": 1 if cards else 0},
            logging_config=quiet,
        )
        serve.run(deploy(serve.ingress(_builder(settings))()).bind(), name=_APP)
        _wait_for_answer(settings)
    except (RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise JobFailedError(f"Ray Serve did not start: {str(error).strip().splitlines()[0]}") from error


def _wait_for_answer(settings: ServeSettings) -> None:
    """Wait until the address answers, since the proxy learns of a replica with a delay. Raises RuntimeError."""
    where = urlsplit(address(settings))
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=_PATIENCE_S)
        with suppress(OSError, http.client.HTTPException), closing(connection):
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"nothing answers at {address(settings)} after {_PATIENCE_S:g} s")


def _builder(settings: ServeSettings) -> Callable[[], FastAPI]:
    """Return the function with which a replica makes its application."""
    threads = max(1, usable_cpus() // settings.replicas)

    def build() -> FastAPI:
        import torch

        from pipeline.inference.allocator import keep_freed_memory
        from pipeline.serving.app import build_app
        from pipeline.serving.model import LiveModel

        torch.set_num_threads(threads)
        keep_freed_memory(settings.max_memory)
        return build_app(settings, LiveModel(settings.model, precision=settings.precision))

    return build


def _stop() -> None:
    """Shut down everything that was started here, even after a second Ctrl-C."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if watch.death():
        return  # nothing is left to stop
    import ray
    from ray import serve

    if "RAY_ADDRESS" in os.environ:
        serve.shutdown()
    elif _APP in serve.status().applications:
        serve.delete(_APP)  # running restorations have a few seconds to end
    ray.shutdown()
