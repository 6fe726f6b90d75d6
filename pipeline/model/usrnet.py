"""The restorer: K unfoldings of (exact data step, learned prior), steered by learned alphas and betas.

Zhang, Van Gool, Timofte: Deep Unfolding Network for Image Super-Resolution, CVPR 2020. `h` and `p` are the
published names of the hyper-parameter net and the prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.model.compiling import compiler_works
from pipeline.model.fourier import BlurOperator, spectrum
from pipeline.model.prior import ResUNet
from pipeline.model.upsample import upsample
from pipeline.model_config import EVERY_SCALE, RestorerConfig

# Called after each unfolding and each kernel step of an inference, to show progress; it may raise to end the inference.
Tick = Callable[[Literal["unfolding", "kernel step"]], None]


@dataclass(frozen=True)
class State:
    """Hold the state of a restoration: the current estimate, and what does not depend on the kernel."""

    x: Tensor  # (B, 3, s*h, s*w)
    lr: Tensor  # (B, 3, h, w)
    y_spectrum: Tensor  # (B, 3, h, w // 2 + 1) complex
    alphas: Tensor  # (B, K)
    betas: Tensor  # (B, K)
    scale: int
    tick: Tick | None = None


class HyperNet(nn.Module):
    """Map (sigma, scale) to K alphas and K betas, all positive (USRNet, section 4.2)."""

    def __init__(self, unfoldings: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(2, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, 2 * unfoldings, 1),
            nn.Softplus(),
        )
        self._initialise(unfoldings)

    def forward(self, sigma: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """Map noise level (B,) on [0, 1] to alphas (B, K) and betas (B, K)."""
        condition = torch.stack((sigma, torch.full_like(sigma, scale)), 1)[..., None, None]
        # float32 also under autocast: at sigma 0 the alphas are 1e-6 to 1e-3.
        with torch.autocast(sigma.device.type, enabled=False):
            out: Tensor = self.mlp(condition)[..., 0, 0] + 1e-6
        alphas, betas = out.chunk(2, 1)
        return alphas, betas

    def _initialise(self, unfoldings: int) -> None:
        """Start as a regularised inverse filter that already deblurs: alpha ~ alpha_0 + 1000 sigma^2.

        A few hidden units of both layers are set to hinges over sigma, from which the last layer interpolates the
        logarithm of that alpha (softplus(z) ~ exp(z) for such small alphas). The other units start small.
        """
        first, second, last = (module for module in self.mlp if isinstance(module, nn.Conv2d))
        if last.weight.is_meta:
            return  # only shapes are needed, and the calls below would import torch's compiler, two seconds
        hinges = min(len(_HINGES), first.out_channels)
        knots = torch.tensor([*_HINGES[:hinges], 2 * _HINGES[hinges - 1]])
        rising = torch.logspace(math.log10(_ALPHA[0]), math.log10(_ALPHA[1]), unfoldings)[:, None]
        alphas = (rising + _NOISE * knots.square()).expm1().log()  # (K, knots)
        slopes = alphas.diff() / knots.diff()
        turns = torch.cat((slopes[:, :1], slopes.diff()), 1)
        betas = torch.logspace(math.log10(_BETA[0]), math.log10(_BETA[1]), unfoldings)
        with torch.no_grad():
            first.weight[:hinges, :, 0, 0] = torch.tensor([_GAIN, 0.0])
            first.bias[:hinges] = -_GAIN * knots[:-1]  # type: ignore[index]
            second.weight[:hinges] = 0
            second.weight[:hinges, :hinges, 0, 0] = torch.eye(hinges)
            second.bias[:hinges] = 0  # type: ignore[index]
            last.weight.mul_(0.1)
            last.weight[:, :hinges] = 0
            last.weight[:unfoldings, :hinges, 0, 0] = turns / _GAIN
            last.bias.copy_(torch.cat((alphas[:, 0], betas.expm1().log())))  # type: ignore[union-attr]


# Initial values of the hyper-parameter net, measured with the identity as the prior (docs/network.md).
_ALPHA = (1e-2, 1e-2)  # without noise, at the first and the last unfolding
_NOISE = 1000.0  # alpha grows by this times sigma^2
_BETA = (0.5, 0.05)
_HINGES = (0.0, 0.005, 0.01, 0.02, 0.04)  # knots over sigma
_GAIN = 30.0  # gain of the hinge units, so that they learn as fast as the others


class USRNet(nn.Module):
    """Restore with a known kernel: LR image, kernel, scale and noise level -> HR image."""

    scales = EVERY_SCALE  # neither the data step nor the prior depends on the scale

    def __init__(self, config: RestorerConfig) -> None:
        super().__init__()
        self.config = config
        self.p = ResUNet(config.widths, config.residual_blocks, global_skip=config.global_skip)
        self.h = HyperNet(config.unfoldings, config.hyper_hidden)

    def forward(
        self,
        lr: Tensor,
        kernel: Tensor,
        scale: int,
        sigma: float | Tensor,
        x0: Tensor | None = None,
        tick: Tick | None = None,
    ) -> Tensor:
        """Restore a batch with known kernels.

        Args:
            lr: (B, 3, h, w) in [0, 1], any h and w.
            kernel: (B, k, k), k odd, sum 1; one per image.
            scale: an integer >= 1, the same for the whole batch.
            sigma: noise level on the [0, 1] scale, a number or (B,).
            x0: (B, 3, s*h, s*w) first estimate, for instance from another restorer; None for `config.x0`.
            tick: called after each unfolding.

        Returns:
            (B, 3, s*h, s*w), not clipped.

        Raises:
            ValueError: non-finite or mis-shaped inputs, an even kernel, scale < 1.
        """
        start = self.start(lr, scale, sigma, x0, tick)
        check_finite("kernel", kernel, training=self.training)
        return self.unfold(start, self.operator(kernel, start), 0, self.config.unfoldings)

    def start(
        self, lr: Tensor, scale: int, sigma: float | Tensor, x0: Tensor | None = None, tick: Tick | None = None
    ) -> State:
        """Check the inputs and make the state before the first unfolding.

        Raises ValueError for invalid inputs.

        Args:
            lr: (B, 3, h, w) in [0, 1].
            scale: an integer >= 1.
            sigma: noise level on the [0, 1] scale, a number or (B,).
            x0: (B, 3, s*h, s*w) first estimate; None for `config.x0`.
            tick: called after each unfolding of this state.
        """
        levels = check_inputs(lr, scale, sigma, training=self.training)
        if x0 is None:
            x0 = upsample(lr, scale, self.config.x0)
        elif x0.shape != (*lr.shape[:2], scale * lr.shape[2], scale * lr.shape[3]):
            raise ValueError(f"x0 {tuple(x0.shape)} is not {scale} times the size of the LR image {tuple(lr.shape)}")
        alphas, betas = self.h(levels, scale)
        return State(x0, lr, spectrum(lr), alphas, betas, scale, tick)

    def operator(self, kernel: Tensor, state: State) -> BlurOperator:
        """Make the Fourier form of (B, k, k) kernels for this state's images, for any number of unfoldings."""
        if not self.training:
            # A kernel estimated in training may be NaN. The training loop detects it in the loss, on all ranks alike.
            check_finite("kernel", kernel, training=False)
        return BlurOperator.of(kernel.to(state.y_spectrum.real.dtype), state.scale, state.lr)

    def unfold(self, state: State, operator: BlurOperator, first: int, last: int, *, final: bool = True) -> Tensor:
        """Run the unfoldings `first` <= i < `last` from `state.x`, to (B, 3, s*h, s*w).

        If `final`, the last unfolding keeps its activations even with `checkpoint_activations`: the backward pass
        starts with it, so recomputing it would not reduce the memory peak.

        Args:
            state: the restoration so far.
            operator: operator of the kernel.
            first: index of the first unfolding.
            last: index after the last unfolding.
            final: whether the restoration ends with these unfoldings.
        """
        x = state.x
        if self.config.compile_prior and torch.is_grad_enabled():
            self._compile_prior(x.device)
        for i in range(first, last):
            alpha, beta = state.alphas[:, i, None, None, None], state.betas[:, i]
            kept = not self.config.checkpoint_activations or (final and i == last - 1)
            if not kept and torch.is_grad_enabled():
                x = checkpoint(self._unfolding, x, state.y_spectrum, operator, alpha, beta, use_reentrant=False)
            else:
                x = self._unfolding(x, state.y_spectrum, operator, alpha, beta)
            if state.tick is not None:
                state.tick("unfolding")
        return x

    def _compile_prior(self, device: torch.device) -> None:
        """Compile in place, which keeps the names in the state dict; copies of the network compile when they train."""
        if self.p._compiled_call_impl is None and compiler_works(device.type):
            self.p.compile()

    def _unfolding(self, x: Tensor, y_spectrum: Tensor, operator: BlurOperator, alpha: Tensor, beta: Tensor) -> Tensor:
        out: Tensor = self.p(operator.step(x, y_spectrum, alpha), beta)
        return out


def check_inputs(lr: Tensor, scale: int, sigma: float | Tensor, *, training: bool) -> Tensor:
    """Check the network's inputs, and return the noise level as (B,).

    Args:
        lr: (B, 3, h, w) floating point.
        scale: an integer >= 1.
        sigma: a number or (B,).
        training: whether the check of finite values may be left to the training loop.
    """
    if lr.ndim != 4 or lr.shape[1] != 3 or 0 in lr.shape:
        raise ValueError(f"the LR image must be (B,3,h,w), got {tuple(lr.shape)}")
    if not lr.is_floating_point():
        raise ValueError(f"the LR image {tuple(lr.shape)} must be floating point in [0, 1], got {lr.dtype}")
    if not isinstance(scale, int) or scale < 1:
        raise ValueError(f"scale {scale!r} for images {tuple(lr.shape)}; it must be an integer >= 1")
    dtype = torch.promote_types(lr.dtype, torch.float32)
    levels = torch.as_tensor(sigma, dtype=dtype, device=lr.device)
    if levels.ndim == 0:
        levels = levels.expand(lr.shape[0])
    if levels.shape != (lr.shape[0],):
        raise ValueError(f"sigma must be a number or (B,) for images {tuple(lr.shape)}, got {tuple(levels.shape)}")
    check_finite("LR image", lr, training=training)
    check_finite("sigma", levels, training=training)
    return levels


def check_finite(name: str, value: Tensor, *, training: bool) -> None:
    """Refuse NaN and infinity. In training on an accelerator the loop's check of the loss does this, without a sync."""
    if (value.device.type == "cpu" or not training) and not bool(torch.isfinite(value).all()):
        raise ValueError(f"the {name} {tuple(value.shape)} holds values that are not finite")
