"""What is minimised: L1 on the restored image + weighted L1 on the kernel's code (DAN, Luo et al., NeurIPS 2020)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pipeline.config import TrainConfig
from pipeline.model import BlindOutput


def objective(out: BlindOutput, hr: Tensor, code: Tensor, config: TrainConfig) -> dict[str, Tensor]:
    """The loss and its terms, each a scalar.

    Every round's code is supervised (they share the estimator's weights, so each is a sample of its task); the
    image only in the last round, as in DAN: its authors found supervising every round's image unstable.

    Args:
        out: the network's answer.
        hr: (B, 3, H, W) sharp image in [0, 1].
        code: (B, c) true code of the kernel.
        config: the weights.
    """
    image = F.l1_loss(out.sr, hr)
    kernel_code = sum((F.l1_loss(estimate.code, code) for estimate in out.rounds), start=image.new_zeros(()))
    kernel_code = kernel_code / len(out.rounds)
    return {"loss": image + config.code_weight * kernel_code, "loss_image": image, "loss_code": kernel_code}
