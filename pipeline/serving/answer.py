"""Execution of a request; the answer is a PNG with headers or JSON."""

from __future__ import annotations

import base64
import io
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import torch

from kernels_bank.runtime.errors import BadRequestError
from pipeline.data.pictures import to_uint8
from pipeline.images.convert import to_depth, to_rgb
from pipeline.images.decode import decode_photograph
from pipeline.images.encode import encode_photograph, encode_png, refuse_format
from pipeline.images.metadata import carried
from pipeline.images.photograph import Photograph
from pipeline.inference.explain import diagnose
from pipeline.inference.progress import Listener
from pipeline.inference.restorer import Restored
from pipeline.model import upsample
from pipeline.serving.errors import RequestError, TooLargeError
from pipeline.serving.model import Served
from pipeline.serving.request import RestoreRequest

_PLAIN = "".join(map(chr, range(32, 127)))


@dataclass(frozen=True)
class Answer:
    """Hold the answer to a request."""

    body: bytes
    media_type: str
    headers: dict[str, str]


def carry_out(request: RestoreRequest, served: Served, max_memory: int, on_step: Listener) -> Answer:
    """Restore the image of a request.

    Args:
        request: the request.
        served: the model.
        max_memory: bytes that this process may grow to.
        on_step: called after each step of the restoration; raising ends it.

    Raises:
        BadImageError: the image cannot be decoded, or its result cannot be encoded.
        RequestError: the model does not support the scale.
        TooLargeError: no window of the image fits into the memory.
    """
    scales = served.restorer.scales
    scale = request.options.scale or scales[0]
    if scale not in scales:
        raise RequestError(f"{served.name} was not made for scale {scale}; it restores {', '.join(map(str, scales))}")
    started = time.perf_counter()
    photograph = decode_photograph(request.image)
    height, width = photograph.pixels.shape[:2]
    refuse_format("png", (height * scale, width * scale))
    decoded = time.perf_counter()
    try:
        restored = served.restorer.restore(
            photograph.pixels,
            scale,
            request.options.sigma,
            None if request.options.kernel is None else np.array(request.options.kernel, np.float32),
            max_memory=max_memory,
            strength=request.options.strength,
            file_error=photograph.file_error,
            trust=request.options.trust,
            on_step=on_step,
        )
    except BadRequestError as error:
        raise TooLargeError(f"{width} x {height} pixels need more memory than this server has") from error
    finished = time.perf_counter()
    metadata, lost = carried(photograph.metadata, restored.image, "png")
    png = encode_photograph(Photograph(restored.image, "png", metadata), quality=100)
    about = _about(restored, served, photograph, lost)
    seconds = {
        "decode": decoded - started,
        "estimate": restored.estimate_seconds,
        "restore": finished - decoded - restored.estimate_seconds,
        "encode": time.perf_counter() - finished,
    }
    if request.options.format == "json":
        pictures = _pictures(photograph.pixels, scale) if request.options.pictures else {}
        content = {
            **about,
            "sigma_from": "estimated" if request.options.sigma == "auto" else "given",
            "kernel_from": "estimated" if request.options.kernel is None else "given",
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "kernel": restored.kernel.tolist(),
            "kernel_png": _base64(encode_png(_visible(restored.kernel))),
            "image": _base64(png),
            **{name: _base64(data) for name, data in pictures.items()},
        }
        return Answer(json.dumps(content).encode(), "application/json", {})
    return Answer(png, "image/png", _headers(about, restored.kernel, seconds))


def _about(restored: Restored, served: Served, photograph: Photograph, lost: list[str]) -> dict[str, Any]:
    return {
        "model": served.name,
        "weights_sha256": served.restorer.digest,
        "precision": served.restorer.precision,
        "width": restored.image.shape[1],
        "height": restored.image.shape[0],
        **restored.facts(),
        "warnings": [*photograph.notes, *lost, *diagnose(photograph.pixels, restored)],
    }


def _headers(about: dict[str, Any], kernel: np.ndarray, seconds: dict[str, float]) -> dict[str, str]:
    """Return `X-Model`, `X-Sigma` and so on; `X-Kernel` is a .npy file in base64; times are in browsers' format."""
    values = io.BytesIO()
    np.save(values, kernel)
    headers = {f"X-{name.replace('_', '-').title()}": str(value) for name, value in about.items() if name != "warnings"}
    headers["X-Warnings"] = "; ".join(about["warnings"])
    headers["X-Kernel"] = _base64(values.getvalue())
    headers["Server-Timing"] = ", ".join(f"{name};dur={1000 * value:.0f}" for name, value in seconds.items())
    headers["Content-Disposition"] = f'inline; filename="restored-x{about["scale"]}.png"'
    # The model's name may be that of a folder, with characters that are invalid in headers.
    return {name: quote(value, safe=_PLAIN) for name, value in headers.items() if value not in {"", "None"}}


def _pictures(pixels: np.ndarray, scale: int) -> dict[str, bytes]:
    """Return the input and its bicubic enlargement, aligned with the restored image, as 8-bit PNGs for browsers."""
    shown = to_rgb(to_depth(pixels, np.dtype(np.uint8)))
    planes = torch.from_numpy(shown).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        bicubic = to_uint8(upsample(planes, scale, "bicubic", "centre")[0])
    return {"input": encode_png(shown), "bicubic": encode_png(bicubic)}


def _visible(kernel: np.ndarray) -> np.ndarray:
    """Return a kernel as (k, k) uint16 with its largest value white, which `jobs/restore.py --kernel` can read."""
    return np.round(kernel.clip(0) / kernel.max() * 65535).astype(np.uint16)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
