"""Restorer and kernel estimator in alternation, from an initial kernel: the network as it is trained.

With T = `config.kernel.rounds` kernel estimates there are T + 1 kernels k_0 ... k_T, k_0 the initial one, and T + 1
images; image i is restored with k_i. `rounds` (DAN's schedule) runs all K unfoldings for each image. `interleaved` cuts
the K unfoldings into T + 1 nearly equal parts and estimates between them, so that a whole blind restoration costs K
unfoldings and T estimates.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from kernels_bank.codec import KernelCodec
from kernels_bank.coding import decode_codes, encode_codes
from pipeline.model.estimator import Estimator
from pipeline.model.fourier import BlurOperator
from pipeline.model.initial import Initial, over_views
from pipeline.model.kernel_prior import KernelPrior
from pipeline.model.reducer import Reducer
from pipeline.model.rounds import BlindOutput, Round, output_of
from pipeline.model.spectral import SpectralInit
from pipeline.model.usrnet import State, USRNet, check_inputs
from pipeline.model_config import ModelConfig


class Alternation(nn.Module):
    """Restore with USRNet and estimate the kernel with DAN's estimator, in alternation, without a choice.

    The codec determines the kernel's size and code; it is not trained.
    """

    def __init__(self, config: ModelConfig, codec: KernelCodec) -> None:
        super().__init__()
        self.config, self.codec, self.kernel_size = config, codec, codec.size
        self.scales = config.scales
        for name, value in (("mean", codec.mean), ("basis", codec.basis), ("std", codec.std)):
            # Saved next to the weights as codec.safetensors, so it is not in the state dict.
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32).clone(), persistent=False)
        self.restorer, kernel = USRNet(config.restorer), config.kernel
        shape = (config.scales, kernel.estimator.channels, kernel.estimator.blocks, codec.components)
        normalised = kernel.estimator.normalised
        self.estimator = Estimator(*shape, normalised=normalised) if kernel.rounds else None
        self.spectral = (
            SpectralInit(config.scales, codec.components, reductions=kernel.reductions)
            if kernel.initial == "spectral"
            else None
        )
        self.prior = KernelPrior() if kernel.prior else None

    def forward(
        self, lr: Tensor, scale: int, sigma: float | Tensor, *, image_rounds: Literal["none", "last", "all"] = "all"
    ) -> BlindOutput:
        """Run the alternation for training. Every kernel estimate is used, better or worse than the one before.

        Args:
            lr: (B, 3, h, w) in [0, 1], any h and w with kernel side <= s * min(h, w).
            scale: one of `config.scales`, the same for the whole batch.
            sigma: noise level on the [0, 1] scale, a number or (B,).
            image_rounds: rounds whose images enter the loss. With `last` and `none`, detached rounds of schedule
                `rounds` before the last are restored without a graph, since no gradient could enter it: same
                gradients, far less memory. With `none` nothing is restored with the last kernel, which saves one of
                T + 1 restorations.

        Raises:
            ValueError: non-finite or mis-shaped inputs, a scale this model was not made for.
        """
        self._check_scale(lr, scale)
        state = self.restorer.start(lr, scale, sigma)
        skip_graph = image_rounds != "all" and self.config.kernel.schedule == "rounds" and self.config.kernel.detach
        first = self.initial(lr, scale, sigma)
        reducer = Reducer(first.shares, scale, "corner")
        rounds = [self._round(0, state, first.blur, first.code, reducer, graph=not skip_graph)]
        for number in range(1, self.config.kernel.rounds + 1):
            blur, code = self._estimate(state, rounds[-1])
            if image_rounds == "none" and number == self.config.kernel.rounds:
                rounds.append(Round(rounds[-1].sr, reducer.compose(blur), code, blur))
                break
            state = self._next_start(state, rounds[-1].sr)
            rounds.append(self._round(number, state, blur, code, reducer, graph=not skip_graph))
        last = torch.full((lr.shape[0],), self.config.kernel.rounds, dtype=torch.int64, device=lr.device)
        return output_of(rounds[-1], rounds, last, first.shares)

    def initial(self, lr: Tensor, scale: int, sigma: float | Tensor) -> Initial:
        """Estimate the start of the alternation.

        In training, a spectral start is estimated from the image as it is. Otherwise it is the mean over the image's
        turns and mirror images, replaced by a Gaussian if it is nearly one (`gaussian_fit.py`).
        """
        batch = lr.shape[0]
        if self.spectral is not None:
            levels = check_inputs(lr, scale, sigma, training=True)
            if self.training:
                answer = self.spectral(lr, scale, levels)
                start = None if answer.start is None else self.decode(answer.start)
                return Initial(self.decode(answer.code), answer.code, answer.shares, start)
            views = over_views(self.spectral, self.decode, lr, scale, levels)
            return Initial(views.blur, self.encode(views.blur), views.shares, views.start)
        code = torch.zeros_like(self.get_buffer("std")).expand(batch, -1)
        if self.config.kernel.initial == "mean":
            return Initial(self.decode(code), code, None)
        kernel = torch.zeros(batch, self.kernel_size, self.kernel_size, dtype=torch.float32, device=lr.device)
        kernel[:, self.kernel_size // 2, self.kernel_size // 2] = 1
        # A delta is some 50 standard deviations away from a bank, and an image's evidence would be lost on the way
        # back. So only the image starts from the delta; the code starts from the mean.
        return Initial(kernel, code if self.config.kernel.estimator.normalised else self.encode(kernel), None)

    def initial_kernel(self, lr: Tensor, scale: int, sigma: float | Tensor) -> Tensor:
        """Return the kernel (B, k, k) that the alternation starts from, with the reduction, on the corner grid."""
        return self.initial(lr, scale, sigma).kernel(scale, "corner")

    def encode(self, kernel: Tensor) -> Tensor:
        """Encode kernels (B, k, k) as standardised codes (B, c): the estimator's targets."""
        return encode_codes(kernel, self.get_buffer("mean"), self.get_buffer("basis"), self.get_buffer("std"))

    def decode(self, code: Tensor) -> Tensor:
        """Decode codes (B, c) to kernels (B, k, k), >= 0, sum 1."""
        mean, basis, std = self.get_buffer("mean"), self.get_buffer("basis"), self.get_buffer("std")
        return decode_codes(code, mean, basis, std, self.kernel_size)

    def _parts(self) -> list[tuple[int, int]]:
        """Return the range of unfoldings that each of the T + 1 kernels is used for."""
        unfoldings, parts = self.config.restorer.unfoldings, self.config.kernel.rounds + 1
        if self.config.kernel.schedule == "rounds":
            return [(0, unfoldings)] * parts
        cuts = [(2 * i * unfoldings + parts) // (2 * parts) for i in range(parts + 1)]  # rounded to nearest
        return list(itertools.pairwise(cuts))

    def _round(
        self, number: int, state: State, blur: Tensor, code: Tensor, reducer: Reducer, *, graph: bool = True
    ) -> Round:
        """Run the unfoldings of one round from `state.x`. `graph` keeps the graph of a round before the last, too."""
        final = number == self.config.kernel.rounds
        with torch.set_grad_enabled(torch.is_grad_enabled() and (graph or final)):
            kernel = reducer.compose(blur)
            operator = self._operator(kernel, state)
            return Round(self.restorer.unfold(state, operator, *self._parts()[number], final=final), kernel, code, blur)

    def _check_scale(self, lr: Tensor, scale: int) -> None:
        if scale not in self.config.scales:
            known = ", ".join(map(str, self.config.scales))
            raise ValueError(f"scale {scale} for images {tuple(lr.shape)}; this model restores {known}")

    def _estimate(self, state: State, previous: Round) -> tuple[Tensor, Tensor]:
        sr, code = previous.sr, previous.code
        if self.config.kernel.detach:
            sr, code = sr.detach(), code.detach()
        assert self.estimator is not None
        code = code + self.estimator(state.lr, sr, state.scale)
        return self.decode(code), code

    def _next_start(self, state: State, sr: Tensor) -> State:
        if self.config.kernel.schedule == "interleaved":
            return replace(state, x=sr)
        if self.config.kernel.warm_start:
            return replace(state, x=sr.detach() if self.config.kernel.detach else sr)
        return state

    def _operator(self, kernel: Tensor, state: State) -> BlurOperator:
        return self.restorer.operator(kernel.detach() if self.config.kernel.detach else kernel, state)
