"""Second tier: jobs/serve.py on the device, asked by HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import torch

from tests.cuda.place import Facts, Place, pictures, skip, within

REPO = Path(__file__).parents[2]
MODEL = "shipped:blind-sr-x2"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_request(place: Place) -> Facts:
    """A photograph over HTTP comes back restored on the device, as this process restores it on the CPU."""
    try:
        import fastapi  # noqa: F401
    except ImportError:
        skip("needs fastapi: pip install '.[serve]'")
    from pipeline.images.decode import decode_image
    from pipeline.images.encode import encode_png
    from pipeline.inference import Restorer

    image = (255 * pictures(1, 60, 72)[0].permute(1, 2, 0)).round().byte().numpy()
    log = Path(tempfile.mkdtemp(prefix="acceptance-")) / "serve.log"
    port = _free_port()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(REPO / "jobs/serve.py"), "--model", MODEL, "--port", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=REPO, env=environment, stdout=stream, stderr=stream)
    try:
        health = _health(f"http://127.0.0.1:{port}", process, log, place.patience(80))
        started = time.monotonic()
        request = f"http://127.0.0.1:{port}/restore?scale=2&sigma=0.01"
        with urllib.request.urlopen(request, data=encode_png(image), timeout=place.patience(60)) as answer:
            restored = decode_image(answer.read())
        seconds = time.monotonic() - started
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
    device = health["model"]["device"]
    assert device == place.device.type, f"the replica is on {device}"
    expected = Restorer.load(MODEL, device=torch.device("cpu")).restore(image, 2, 0.01).image
    mean = float(np.abs(restored.astype(np.float64) - expected).mean())
    within("mean difference in grey levels", mean, 1)
    return {"device": device, "seconds of a request": seconds, "mean difference": mean}


def _health(url: str, process: subprocess.Popen[bytes], log: Path, patience: float) -> dict:
    """Ask until it answers.

    Args:
        url: of the server.
        process: the server's, which may end.
        log: what it says.
        patience: seconds.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=5) as answer:
                return dict(json.load(answer))
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    said = " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
    raise AssertionError(f"it does not answer, {log}: {said[:600]}")
