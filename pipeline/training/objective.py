"""The training objective: what is minimised, over which part of the network.

The default is L1 on the image + L1 on the kernel's code, as in DAN (Luo et al., NeurIPS 2020). `TrainingObjective`
is the network and its loss as one module, so that data-parallel training wraps both and every part has one forward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import LossConfig, TrainConfig
from pipeline.degrade import degrade
from pipeline.model import BlindOutput, BlindUSRNet
from pipeline.model.inverse_error import inverse_error
from pipeline.model.reducer import Reducer


class TrainingObjective(nn.Module):
    """Compute the loss and its terms in one forward pass. Parts that `learn` does not name are frozen.

    all       the alternation; image and code
    restorer  the restorer given the true kernel; image only (USRNet's own training)
    kernel    the alternation with a frozen restorer; code, and the image through the estimator where not detached
    spectral  the initial kernel alone: no image is restored, so a step is very cheap
    """

    def __init__(self, network: BlindUSRNet, config: TrainConfig) -> None:
        super().__init__()
        self.network, self._config = network, config
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(learns(config.learn, name))

    def forward(self, lr: Tensor, hr: Tensor, kernel: Tensor, sigma: Tensor, scale: int) -> dict[str, Tensor]:
        """Return the loss and its terms as scalars, and `psnr` if an image was restored.

        Args:
            lr: (B, 3, H/s, W/s).
            hr: (B, 3, H, W) sharp images in [0, 1].
            kernel: (B, k, k) true kernels.
            sigma: (B,) noise levels on the [0, 1] scale.
            scale: s.
        """
        network, loss = self.network, self._config.loss
        match self._config.learn:
            case "restorer":
                sr = network.restore(lr, kernel, scale, sigma)
                image = F.l1_loss(sr, hr)
                return {"loss": image, "loss_image": image, "psnr": _psnr(sr, hr)}
            case "spectral":
                first = network.initial(lr, scale, sigma)
                reducer = Reducer(first.shares, scale, "corner")
                estimate = reducer.compose(first.blur)
                weights = {"loss_code": loss.code, "loss_kernel": loss.kernel, "loss_inverse": loss.inverse}
                weights["loss_start"] = loss.kernel
                terms = {}
                if loss.code:
                    terms["loss_code"] = F.l1_loss(first.code, network.encode(kernel))
                if loss.kernel:
                    terms["loss_kernel"] = kernel_l1(estimate, kernel)
                if loss.kernel and first.start is not None:
                    terms["loss_start"] = kernel_l1(reducer.compose(first.start), kernel)
                if loss.inverse:
                    terms["loss_inverse"] = inverse_error(estimate, kernel, sigma, scale).mean()
                return {"loss": _weighted(terms, weights), **terms}
            case _:
                out = network(lr, scale, sigma, image_rounds=loss.image_rounds)
                terms = objective(out, lr, hr, kernel, network.encode(kernel), scale, loss)
                return terms if loss.image_rounds == "none" else terms | {"psnr": _psnr(out.sr, hr)}


def learns(learn: str, parameter: str) -> bool:
    """Check whether the parameter of this name in `BlindUSRNet` is trained."""
    part = parameter.partition(".")[0]
    if part == "prior":  # fitted separately by tools/fit_kernel_prior.py
        return False
    match learn:
        case "all":
            return True
        case "kernel":
            return part != "restorer"
    return part == learn


def objective(
    out: BlindOutput, lr: Tensor, hr: Tensor, kernel: Tensor, code: Tensor, scale: int, config: LossConfig
) -> dict[str, Tensor]:
    """Compute the loss of the alternation and its terms, each a scalar.

    The code is supervised in every round, since all rounds share the estimator's weights. By default the image is
    supervised only in the last round, as in DAN, whose authors found supervising every round's image unstable.

    Args:
        out: output of the network.
        lr: (B, 3, H/s, W/s).
        hr: (B, 3, H, W) sharp image in [0, 1].
        kernel: (B, k, k) true kernel.
        code: (B, c) code of the true kernel.
        scale: s.
        config: weights of the terms; a term of weight 0 is not computed.
    """
    images = {"none": [], "last": out.rounds[-1:], "all": out.rounds}[config.image_rounds]
    terms = {"loss_image": torch.stack([F.l1_loss(r.sr, hr) for r in images]).mean()} if images else {}
    terms["loss_code"] = torch.stack([F.l1_loss(r.code, code) for r in out.rounds]).mean()
    weights = {"loss_image": 1.0, "loss_code": config.code}
    if config.kernel:
        terms["loss_kernel"] = torch.stack([kernel_l1(r.kernel, kernel) for r in out.rounds]).mean()
        weights["loss_kernel"] = config.kernel
    if config.consistency:
        terms["loss_consistency"] = F.l1_loss(degrade(out.sr, out.kernel, scale), lr)
        weights["loss_consistency"] = config.consistency
    return {"loss": _weighted(terms, weights), **terms}


def kernel_l1(estimate: Tensor, kernel: Tensor) -> Tensor:
    """Average sum |k' - k| over the batch, between 0 and 2. The sum is over pixels, not a mean."""
    return (estimate - kernel).abs().sum((-2, -1)).mean()


def _weighted(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


@torch.no_grad()
def _psnr(sr: Tensor, hr: Tensor) -> Tensor:
    """Return the PSNR in dB of the whole batch pooled, which serves for monitoring, not for reports."""
    return -10 * torch.log10((sr.clamp(0, 1) - hr).square().mean().clamp_min(1e-10))
