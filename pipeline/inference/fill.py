"""The band that makes a photograph periodic, filled so that a blurred sharp image explains it.

`periodic_extension` joins the edges smoothly, but no sharp image blurred with the kernel looks like its band, and a
restorer that trusts the data (little noise, small alpha) answers with ringing from every edge. The band is missing
data. So it is filled as in expectation maximisation: restore by the data step alone, degrade again, keep the pixels
that the camera saw, and take the band from the prediction. Each round starts a little beyond the last estimate, with
the momentum n / (n + 3) of Nesterov's method, since plain rounds converge far too slowly for a wide kernel.

Except for the first estimate x, a bicubic one, nothing here has the size of the sharp image. After degradation, the
data step of `pipeline.model.fourier` is

    S B x' = S B x + D / (D + alpha) (y - S B x),        D = S B B^H S^T,

and D is diagonal in the LR image's Fourier basis: a round is one FFT of the LR image and one inverse.
"""

from __future__ import annotations

import numpy as np
import torch

from pipeline.model import BlurOperator, upsample
from pipeline.model.fourier import spectrum

_ROUNDS = 80
_ALPHA = 0.08  # weight of the previous estimate: a larger one makes the band smoother and the convergence slower


def explained_band(image: np.ndarray, known: np.ndarray, kernel: torch.Tensor, scale: int) -> np.ndarray:
    """Fill the pixels of a periodic LR image that no camera saw.

    Args:
        image: (h, w, 3) float32, smoothly periodic.
        known: (h, w) bool, the pixels that a camera saw; they are returned unchanged.
        kernel: (1, k, k) on the device that computes.
        scale: s.

    Returns:
        (h, w, 3) float32.
    """
    if known.all():
        return image
    kept = torch.from_numpy(known).to(kernel.device)
    with torch.inference_mode():
        photograph = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].to(kernel.device)
        operator = BlurOperator.of(kernel, scale, photograph)
        gain = operator.power / (operator.power + _ALPHA)
        # One channel at a time, because the sharp image may be large.
        sharp = (upsample(channel, scale, "bicubic") for channel in photograph.split(1, 1))
        degraded = spectrum(torch.cat([operator.apply(x) for x in sharp], 1))  # of the estimate: S B x
        ahead, y = degraded, photograph
        for n in range(_ROUNDS):
            before, degraded = degraded, ahead + gain * (spectrum(y) - ahead)
            ahead = degraded + n / (n + 3) * (degraded - before)
            y = torch.where(kept, photograph, torch.fft.irfft2(ahead, s=known.shape))
        y = torch.where(kept, photograph, torch.fft.irfft2(degraded, s=known.shape))
    return np.ascontiguousarray(y[0].permute(1, 2, 0).cpu().numpy())
