"""Small pictures through `POST /restore`: one request at a time, and sixteen: `make bench`.

The network computes on both cores already for one request, so sixteen gain only what is not the network's. Images a
second need an idle machine of two cores; CPU seconds an image, of Serve's replica and proxy, do not.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import psutil
import pytest
from skimage import data

from pipeline.images.encode import encode_png
from pipeline.inference.allocator import keep_freed_memory
from pipeline.serving.answer import carry_out
from pipeline.serving.model import load
from pipeline.serving.request import RestoreOptions, RestoreRequest
from pipeline.shipped import FOR_PHOTOGRAPHS
from tests.helpers.servers import free_port

REPO = Path(__file__).parents[2]
MANY, MEMORY = 16, 2 * 2**30
KERNEL = json.dumps((np.ones((5, 5)) / 25).round(4).tolist())
WAYS = {"known": {"sigma": "0.01", "kernel": KERNEL}, "blind": {}}
COUNT = {"known": 32, "blind": 16}  # pictures of a burst


class Burst(NamedTuple):
    """Seconds an image, of the clock and of the processors."""

    wall: float
    cpu: float


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    coffee, corners = data.coffee(), np.random.default_rng(0).integers(0, 300, (MANY, 2))
    return [encode_png(np.ascontiguousarray(coffee[y : y + 64, x : x + 64])) for y, x in corners]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    command = [sys.executable, str(REPO / "jobs" / "serve.py"), "--port", str(port)]
    command += ["--queue", str(MANY), "--transfers-per-client", str(MANY)]
    environment = {name: value for name, value in os.environ.items() if name not in {"RAY_ADDRESS", "RAY_AUTH_MODE"}}
    environment.pop("OMP_NUM_THREADS", None)  # a replica takes the cores it has
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        while f"at http://127.0.0.1:{port}" not in (folder / "log").read_text():
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def serving_cpu() -> float:
    """CPU seconds of the replica and of the proxy before it."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(name in " ".join(process.cmdline()) for name in ("ServeReplica", "ProxyActor")):
                times = process.cpu_times()
                total += times.user + times.system
    return total


def burst(url: str, pictures: list[bytes], way: str, at_once: int) -> Burst:
    query = "&".join(f"{name}={quote(value)}" for name, value in {"scale": "2", **WAYS[way]}.items())
    bodies = [pictures[i % len(pictures)] for i in range(COUNT[way])]

    def post(body: bytes) -> int:
        with urllib.request.urlopen(f"{url}/restore?{query}", data=body, timeout=600) as answer:
            return len(answer.read())

    with ThreadPoolExecutor(at_once) as clients:
        cpu, wall = serving_cpu(), time.perf_counter()
        assert all(clients.map(post, bodies))
        return Burst((time.perf_counter() - wall) / len(bodies), (serving_cpu() - cpu) / len(bodies))


def without_http(pictures: list[bytes], way: str) -> float:
    """CPU seconds of an image in this process: all that the replica does but HTTP."""
    served, options = load(FOR_PHOTOGRAPHS), RestoreOptions.model_validate({"scale": 2, "format": "png", **WAYS[way]})
    keep_freed_memory(MEMORY)
    requests = [RestoreRequest(body, options) for body in pictures[:4]]
    carry_out(requests[0], served, MEMORY)
    started = time.process_time()
    for request in requests:
        carry_out(request, served, MEMORY)
    return (time.process_time() - started) / len(requests)


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.benchmark(group="64 x 64 pictures through POST /restore")
@pytest.mark.parametrize("way", WAYS)
def test_requests(benchmark: Callable, url: str, pictures: list[bytes], way: str) -> None:
    many: list[Burst] = []
    burst(url, pictures, way, MANY)
    alone = burst(url, pictures, way, 1)
    benchmark.pedantic(lambda: many.append(burst(url, pictures, way, MANY)), rounds=1)
    gain, plain = alone.wall / many[0].wall, without_http(pictures, way)
    name = f"a 64 x 64 request's CPU, {way}, {MANY} at a time against one"
    benchmark.extra_info["ratios"] = {name: alone.cpu / many[0].cpu}
    print(f"\n{way}: {1 / alone.wall:.2f} images/s one at a time, {gain:.2f}x as many with {MANY} at a time")
    print(f"CPU ms an image: {1000 * alone.cpu:.0f} and {1000 * many[0].cpu:.0f}; without HTTP {1000 * plain:.0f}")
