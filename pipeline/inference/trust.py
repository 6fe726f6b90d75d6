"""The trust in a blind restoration: where the restoration would do harm, it is mixed with a plain enlargement.

A wrong kernel can cost more than a right one gains, and a net may take unfamiliar content (lamps on black, patterns,
pictures that were never sharp) for blur. For an enlarged picture u and a restored picture r, the best mixture
u + w (r - u) has w = 1/2 + (MSE(u) - MSE(r)) / (2 MSE(u, r)): 1 if every change is right, 0 if every change is wrong. A
small net estimates w without the truth. It was trained to gain decibels, with lost ones counted twice, and
three times where kernel steps made the kernel (`tools/fit_trust.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter

from kernels_bank.names import Grid
from kernels_bank.runtime.errors import ArtefactError
from pipeline.catalogue import ModelLocation
from pipeline.model.upsample import upsample
from pipeline.model_folder import read_file, read_manifest

TRUST = "trust.safetensors"  # in a model folder
_ROWS = 128  # LR rows processed at a time, so that the enlargement of a large picture is never held as a whole
_HALO = 4  # further LR rows around them that affect their enlargement
_CLEAR, _NONE = 0.93, 0.07  # a weight above or below is set to 1 or 0
_MOST_BYTES = 1 << 20
_TINY = 1e-6

FEATURES = (
    *("changed", "changed_by", "variation", "spread", "overshoot", "overshoot_by", "unexplained", "unexplained_by"),
    *("level", "file_error", "width", "side", "clipped", "detail", "contrast", "detail_share", "spread_lr"),
    *("spread_enlarged", "flat", "scale_2", "scale_4", "direct", "area", "bicubic", "refined", "limits", "noise"),
)
_REFINED = FEATURES.index("refined")


class Evidence(NamedTuple):
    """Hold what is known about a blind restoration besides its pixels."""

    scale: int
    level: float  # noise level passed to the restorer, [0, 1] scale
    file_error: float  # the part of it that is from the file's compression, [0, 1] scale
    residual: float  # RMS residual of the restored picture, [0, 1] scale
    width: float  # variance of the blur without the reduction, HR pixels, mean of both axes
    shares: np.ndarray  # (4,) of `REDUCTIONS`
    refined: bool  # whether kernel steps made the kernel
    grid: Grid = "centre"  # grid of the restored picture


@dataclass(frozen=True)
class TrustNet:
    """Estimate the trust from evidence: the mean over a few nets with one hidden layer.

    There are two sets of nets, the second for kernels from kernel steps. Those kernels are rare, either right or far
    off, and the evidence for them does not help with other kernels.
    """

    mean: np.ndarray  # (2, n) over the features used for the fit
    std: np.ndarray  # (2, n)
    hidden: np.ndarray  # (2, nets, n, h)
    hidden_bias: np.ndarray  # (2, nets, h)
    out: np.ndarray  # (2, nets, h)
    out_bias: np.ndarray  # (2, nets)
    digest: str  # sha256 of the file

    def __call__(self, features: np.ndarray) -> float:
        """Return w in [0, 1] for features (n,); values near 1 and 0 become exactly 1 and 0."""
        part = int(features[_REFINED] > 0.5)
        x = np.clip((features - self.mean[part]) / self.std[part], -3, 3)
        before = np.einsum("n,knh->kh", x, self.hidden[part]) + self.hidden_bias[part]
        hidden = torch.nn.functional.gelu(torch.from_numpy(before))
        logits = (hidden.numpy() * self.out[part]).sum(1) + self.out_bias[part]
        w = float((1 / (1 + np.exp(-logits))).mean())
        return 1.0 if w > _CLEAR else 0.0 if w < _NONE else w

    @classmethod
    def parse(cls, data: bytes, where: str) -> TrustNet:
        """Parse a `trust.safetensors`. Raises ArtefactError if it is damaged or made for other features."""
        try:
            tensors = load(data)
            length = int.from_bytes(data[:8], "little")
            listed = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get("features", "")
            values = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
            if values["mean"].ndim == 1:  # from a version with one set for both
                values = {name: np.stack((value, value)) for name, value in values.items()}
            net = cls(**values, digest=hashlib.sha256(data).hexdigest())
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            raise ArtefactError(f"{where}: damaged ({error})") from error
        if listed != ",".join(FEATURES) or net.mean.shape != (2, len(FEATURES)):
            raise ArtefactError(f"{where}: made for other features; use this program's version of the model")
        return net


def open_trust(location: ModelLocation) -> TrustNet | None:
    """Return the trust net of a model, if it has one. Raises ArtefactError if it is damaged."""
    if location.folder.endswith(".pth"):
        return None
    listed = read_manifest(location.folder).sha256
    if TRUST not in listed:
        return None
    data = read_file(location.folder, TRUST, listed[TRUST], limit=_MOST_BYTES)
    return TrustNet.parse(data, f"{location.folder}/{TRUST}")


def features(lr: np.ndarray, restored: np.ndarray, seen: Evidence) -> np.ndarray:
    """Compute the features for the net, (n,) float64.

    Args:
        lr: (h, w, 3) float32 in [0, 1].
        restored: (s*h, s*w, 3) float32 in [0, 1].
        seen: evidence besides the pixels.
    """
    scale, total = seen.scale, _Sums()
    for rows, enlarged in _enlarged(lr, scale, seen.grid):
        total.add(restored[rows], enlarged, scale)
    count = restored.size
    changed = float(np.sqrt(total.changed / count)) + _TINY
    overshoot = float(np.sqrt(total.overshoot / count)) + _TINY
    detail = lr - gaussian_filter(lr, (1, 1, 0), mode="mirror")
    fine, contrast = _rms(detail), _rms(lr - lr.mean((0, 1)))
    variation, spread = total.gradients(0)
    plain, plain_spread = total.gradients(1)
    values = {
        "changed": _log(changed / (plain + 1e-3)),
        "changed_by": _log(changed),
        "variation": _log(variation / (plain + 1e-4)),
        "spread": _log(spread / plain_spread),
        "overshoot": _log((overshoot + 1e-4) / (changed + 1e-4)),
        "overshoot_by": _log(overshoot + 1e-4),
        "unexplained": _log((seen.residual + 2e-4) / (seen.level + 2e-3)),
        "unexplained_by": _log(seen.residual + 2e-4),
        "level": _log(seen.level + 1e-3),
        "file_error": _log(seen.file_error + 1e-3),
        "width": _log(seen.width + 0.05) - 2 * np.log(scale),
        "side": 0.5 * np.log(lr.shape[0] * lr.shape[1]),
        "clipped": float(((lr <= 1.01 / 255) | (lr >= 253.99 / 255)).any(-1).mean()),
        "detail": _log(fine + 1e-4),
        "contrast": _log(contrast + 1e-3),
        "detail_share": _log(fine / (contrast + 1e-3)),
        "spread_lr": _spread(lr),
        "spread_enlarged": plain_spread,
        "flat": float((np.abs(detail).max(-1) < 1.5 / 255).mean()),
        "scale_2": float(scale == 2),
        "scale_4": float(scale == 4),
        "direct": float(seen.shares[0]),
        "area": float(seen.shares[1]),
        "bicubic": float(seen.shares[2]),
        "refined": float(seen.refined),
        "limits": total.limits / count,
        "noise": _log((seen.level + 1e-3) / (fine + 1e-4)),
    }
    return np.array([values[name] for name in FEATURES])


def mix(lr: np.ndarray, restored: np.ndarray, trust: float, scale: int, grid: Grid = "centre") -> None:
    """Replace a restored picture r by u + w (r - u), in place; u is the bicubic enlargement.

    Args:
        lr: (h, w, 3) float32 in [0, 1].
        restored: (s*h, s*w, 3) float32 in [0, 1].
        trust: w, in [0, 1].
        scale: s.
        grid: grid of the restored picture.
    """
    if trust < 1:
        for rows, enlarged in _enlarged(lr, scale, grid):
            restored[rows] += (1 - trust) * (enlarged - restored[rows])


class _Sums:
    """Add up a picture's statistics strip by strip; differences across the few seams are left out."""

    def __init__(self) -> None:
        self.changed = self.overshoot = self.limits = 0.0
        self._steps = np.zeros((2, 2, 2))  # restored and enlarged, down and across: sum of |step| and of step^2
        self._counts = np.zeros((2,))

    def add(self, restored: np.ndarray, enlarged: np.ndarray, scale: int) -> None:
        """Add a strip (n, s*w, 3) of both pictures."""
        box = (2 * scale + 1, 2 * scale + 1, 1)
        low, high = (near(enlarged, size=box, mode="nearest") for near in (minimum_filter, maximum_filter))
        beyond = np.maximum(low - restored, 0) ** 2 + np.maximum(restored - high, 0) ** 2
        self.overshoot += float(beyond.sum(dtype=np.float64))
        self.changed += float(np.square(restored - enlarged, dtype=np.float64).sum())
        self.limits += float(((restored <= 0) | (restored >= 1)).sum())
        for number, picture in enumerate((restored, enlarged)):
            for axis in (0, 1):
                step = np.diff(picture, axis=axis)
                self._steps[number, axis] += np.abs(step).sum(dtype=np.float64), np.square(step).sum(dtype=np.float64)
        self._counts += (restored.shape[0] - 1) * restored[0].size, restored[:, 1:].size

    def gradients(self, number: int) -> tuple[float, float]:
        """Return total variation per pixel and its spread for the restored picture (0) or the enlarged one (1)."""
        sums, squares = self._steps[number, :, 0], self._steps[number, :, 1]
        count = max(self._counts.sum(), 1)
        mean, power = sums.sum() / count, squares.sum() / count
        return float((sums / np.maximum(self._counts, 1)).sum()), float((mean + 1e-9) / (np.sqrt(power) + 1e-9))


def _enlarged(lr: np.ndarray, scale: int, grid: Grid) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the bicubic enlargement in strips: the slice of HR rows, and their pixels."""
    height = lr.shape[0]
    for first in range(0, height, _ROWS):
        last = min(first + _ROWS, height)
        start, end = max(0, first - _HALO), min(height, last + _HALO)
        planes = torch.from_numpy(np.ascontiguousarray(lr[start:end])).permute(2, 0, 1)[None]
        strip = upsample(planes, scale, "bicubic", grid)[0].clamp(0, 1).permute(1, 2, 0).numpy()
        yield slice(scale * first, scale * last), strip[scale * (first - start) : scale * (last - start)]


def _spread(image: np.ndarray) -> float:
    steps = np.concatenate([np.diff(image, axis=axis).ravel() for axis in (0, 1)])
    return float((np.abs(steps).mean() + 1e-9) / (_rms(steps) + 1e-9)) if steps.size else 1.0


def _rms(values: np.ndarray) -> float:
    if not values.size:
        return _TINY
    return float(np.sqrt(np.square(values, dtype=np.float64).mean())) + _TINY


def _log(value: float) -> float:
    return float(np.log(max(value, _TINY)))
