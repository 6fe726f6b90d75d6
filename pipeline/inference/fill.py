"""The band that makes a photograph periodic, made such that a sharp image explains it.

`periodic_extension` joins the edges smoothly, but no sharp image blurred with the kernel looks like its band, and a
restorer that trusts the data (little noise, small alpha) answers with ringing from every edge. The band is not data:
it is missing. So it is filled as missing data are in expectation maximisation: restore with a plain quadratic prior,
degrade again, keep what the camera saw and take the band from the prediction. Only FFTs, no network. Each round begins
a little beyond the last estimate, by the momentum of Nesterov's method (as FISTA of Beck and Teboulle, 2009), for plain
rounds settle far too slowly where the kernel is wide.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from pipeline.model import BlurOperator, upsample
from pipeline.model.fourier import spectrum

_ROUNDS = 80
_ALPHA = 0.1  # weight of the previous estimate: the larger, the smoother the band and the slower it settles


def explained_band(image: np.ndarray, known: np.ndarray, kernel: torch.Tensor, scale: int) -> np.ndarray:
    """Fill what no camera saw of a periodic LR image.

    Args:
        image: (h, w, 3) float32, smoothly periodic.
        known: (h, w) bool, the pixels that a camera saw; they come back unchanged.
        kernel: (1, k, k) on the device that computes.
        scale: s.

    Returns:
        (h, w, 3) float32.
    """
    if known.all():
        return image
    out = np.empty_like(image)
    alpha = torch.full((1, 1, 1, 1), _ALPHA, device=kernel.device)
    kept = torch.from_numpy(known).to(kernel.device)
    with torch.inference_mode():
        for channel in range(image.shape[2]):  # one at a time: the sharp image may be large
            photograph = torch.from_numpy(np.ascontiguousarray(image[..., channel]))[None, None].to(kernel.device)
            operator = BlurOperator.of(kernel, scale, photograph)
            x, y, t = upsample(photograph, scale, "bicubic"), photograph, 1.0
            ahead = x
            for _ in range(_ROUNDS):
                before, x = x, operator.step(ahead, spectrum(y), alpha)
                before_t, t = t, (1 + math.sqrt(1 + 4 * t * t)) / 2
                ahead = x + (before_t - 1) / t * (x - before)
                y = torch.where(kept, photograph, operator.apply(ahead))
            out[..., channel] = torch.where(kept, photograph, operator.apply(x))[0, 0].cpu().numpy()
    return out
