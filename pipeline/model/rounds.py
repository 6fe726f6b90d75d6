"""The results of the rounds of a blind restoration, and the result that is accepted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Round(NamedTuple):
    """Hold the result of one round: `sr` was restored with `kernel`.

    With `image_rounds="none"` the last round has the image of the round before.
    """

    sr: Tensor  # (B, 3, s*h, s*w)
    kernel: Tensor  # (B, k, k): the blur and the reduction behind it
    code: Tensor  # (B, c), standardised, of the blur
    blur: Tensor  # (B, k, k), >= 0, sum 1


@dataclass(frozen=True)
class BlindOutput:
    """Hold a blind restoration, with every round's image and kernel for the loss and for pictures."""

    sr: Tensor  # (B, 3, s*h, s*w), not clipped
    kernel: Tensor  # (B, k, k), sum 1: blur and reduction; negative only in the lobes of a reduction
    codes: Tensor  # (B, T + 1, c), the initial kernel's first
    rounds: list[Round]  # T + 1 rounds, each with its own kernel; `infer` adds one if it refines
    kernel_round: Tensor  # (B,) int64, the round whose kernel is `kernel`; in training always the last
    reductions: Tensor | None = None  # (B, 4) shares of `REDUCTIONS`, from models that estimate them


def output_of(accepted: Round, rounds: list[Round], kernel_round: Tensor, shares: Tensor | None) -> BlindOutput:
    """Put together the output of a blind restoration.

    Args:
        accepted: accepted image and kernel.
        rounds: all rounds.
        kernel_round: (B,) index of the round whose kernel is accepted.
        shares: (B, 4) of `REDUCTIONS`, from models that estimate them.
    """
    codes = torch.stack([r.code for r in rounds], 1)
    return BlindOutput(accepted.sr, accepted.kernel, codes, rounds, kernel_round, shares)


def choose(new_wins: Tensor, new: Round, old: Round) -> Round:
    """Take each image of the batch from the new round where `new_wins`, (B,) bool, holds, otherwise from the old."""
    return Round(*(a.where(new_wins.reshape(-1, *[1] * (a.ndim - 1)), b) for a, b in zip(new, old, strict=True)))
