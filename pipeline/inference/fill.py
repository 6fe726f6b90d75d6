"""The band that makes a photograph periodic, made such that a sharp image explains it.

`periodic_extension` joins the edges smoothly, but no sharp image blurred with the kernel looks like its band, and a
restorer that trusts the data (little noise, small alpha) answers with ringing from every edge. The band is not data:
it is missing. So it is filled as missing data are in expectation maximisation: restore with a plain quadratic prior,
degrade again, keep what the camera saw and take the band from the prediction. Only FFTs, no network.
"""

from __future__ import annotations

import numpy as np
import torch

from pipeline.model import BlurOperator, upsample
from pipeline.model.fourier import spectrum

_ROUNDS = 40
_ALPHA = 0.02  # weight of the previous estimate: the larger, the smoother the band and the slower it settles


def explained_band(torus: np.ndarray, seen: tuple[int, int], kernel: torch.Tensor, scale: int) -> np.ndarray:
    """Fill what lies beyond the seen part of a periodic LR image.

    Args:
        torus: (h', w', 3) float32, smoothly periodic.
        seen: (h, w), its upper-left part that a camera saw; it comes back unchanged.
        kernel: (1, k, k) on the device that computes.
        scale: s.

    Returns:
        (h', w', 3) float32.
    """
    height, width = seen
    if torus.shape[:2] == (height, width):
        return torus
    out = np.empty_like(torus)
    alpha = torch.full((1, 1, 1, 1), _ALPHA, device=kernel.device)
    with torch.inference_mode():
        for channel in range(torus.shape[2]):  # one at a time: the sharp image may be large
            y = torch.from_numpy(np.ascontiguousarray(torus[..., channel]))[None, None].to(kernel.device)
            photograph = y[..., :height, :width].clone()
            operator = BlurOperator.of(kernel, scale, y)
            x = upsample(y, scale, "bicubic")
            for _ in range(_ROUNDS):
                x = operator.step(x, spectrum(y), alpha)
                y = operator.apply(x)
                y[..., :height, :width] = photograph
            out[..., channel] = y[0, 0].cpu().numpy()
    return out
