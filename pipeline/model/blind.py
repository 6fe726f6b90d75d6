"""The blind network as it is used: the alternation, with a guard that accepts a kernel or keeps the one before.

A wrong kernel can cost far more than a right one gains. So at inference a guard accepts an estimate only if the image
restored with it scores no worse than with the kernel accepted before (`guard.py`). Closed-form kernel steps come last
(`kernel_step.py`); in models with a kernel prior a small net corrects their kernels (`kernel_prior.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from kernels_bank.names import Grid
from pipeline.model.alternation import Alternation
from pipeline.model.centring import recentre
from pipeline.model.edge_start import EDGE_SCALES, edge_kernel
from pipeline.model.gaussian_fit import is_nearly_gaussian
from pipeline.model.guard import EQUAL, Acceptance, acceptance, look, overshoot, wins
from pipeline.model.initial import Initial
from pipeline.model.kernel_step import CORRECTED, Prior, refine_kernel
from pipeline.model.narrowing import narrow
from pipeline.model.reducer import Reducer
from pipeline.model.rounds import BlindOutput, Round, choose, output_of
from pipeline.model.usrnet import State, Tick, USRNet, check_inputs

# Raised when the same weights come to estimate another kernel, so that results are not mixed with earlier ones.
ESTIMATE_VERSION = 2
_LEAST_PIXELS = 6  # LR pixels per kernel pixel that kernel steps need where the net errs on the harmless side


class BlindUSRNet(Alternation):
    """Restore blind with the guard, or with known kernels."""

    def infer(
        self,
        lr: Tensor,
        scale: int,
        sigma: float | Tensor,
        *,
        initial: Initial | None = None,
        observed_size: tuple[int, int] | None = None,
        grid: Grid = "corner",
        tick: Tick | None = None,
    ) -> BlindOutput:
        """Restore with the guard: a kernel is accepted for an image only if the image restored with it is plausible.

        The rounds of the alternation are followed by `config.kernel.steps` closed-form kernel steps as one more
        round, which has to win clearly. They are left out where they cannot win (`settled`). An initial kernel that is
        kept is narrowed for as long as its image rings (`narrowing.py`), unless the net errs on the narrow side or
        there are rounds. For a round that does not start from x0, the round's unfoldings run twice.

        Args:
            lr: (B, 3, h, w) in [0, 1], any h and w with kernel side <= s * min(h, w).
            scale: one of `config.scales`, the same for the whole batch.
            sigma: noise level on the [0, 1] scale, a number or (B,).
            initial: start of the alternation, if a better one than `self.initial(lr, scale, sigma)` is known; None for
                that one.
            observed_size: (h', w') upper-left part of `lr` that a camera saw, if not all. Only that part is scored.
            grid: position of the LR pixels in their blocks, and so of the restored image.
            tick: called after each unfolding and each kernel step.

        Raises:
            ValueError: non-finite or mis-shaped inputs, a scale this model was not made for.
        """
        self._check_scale(lr, scale)
        origin = state = self.restorer.start(lr, scale, sigma, tick=tick)
        first = initial or self.initial(lr, scale, sigma)
        reducer = Reducer(first.shares, scale, grid)
        accepted = self._round(0, state, first.blur, first.code, reducer)
        rounds, kernel_round = [accepted], torch.zeros(lr.shape[0], dtype=torch.int64, device=lr.device)
        for number in range(1, self.config.kernel.rounds + 1):
            estimate = self._estimate(state, accepted)
            start = self._next_start(state, accepted.sr)
            new = self._round(number, start, *estimate, reducer)
            # Only images with the same start and as many unfoldings compare fairly.
            old = accepted if start is state else self._round(number, start, accepted.blur, accepted.code, reducer)
            better = self._wins(new, old, start, observed_size)
            accepted, kernel_round = choose(better, new, old), kernel_round.where(~better, number)
            rounds.append(new)
            state = start
        settled = self.settled(first, observed_size or (lr.shape[-2], lr.shape[-1]))
        refines = self.config.kernel.steps > 0 and not bool(settled.all())
        if refines:
            levels = check_inputs(lr, scale, sigma, training=self.training)
            begin = self._steps_start(lr, accepted.blur, first, scale, levels)
            blur = recentre(self.refine(lr, begin, scale, levels, reducer, tick)[-1])
            new = self._whole(origin, blur, self.encode(blur), reducer)
            # Without rounds in between, the accepted round is already a whole restoration from x0.
            old = self._whole(origin, accepted.blur, accepted.code, reducer) if self.config.kernel.rounds else accepted
            excess, sure = overshoot(old.sr, scale, observed_size, self._reach(origin)), first.start is not None
            terms = acceptance(scale, accepted.blur, excess, sure=sure, prior=self.prior is not None)
            better = self._wins(new, old, origin, observed_size, terms) & ~settled
            accepted, kernel_round = choose(better, new, accepted), kernel_round.where(~better, len(rounds))
            rounds.append(new)
        if first.start is None and not self.config.kernel.rounds:  # else it errs on the narrow side already
            rounds[0] = self._narrowed(rounds[0], kernel_round == 0, origin, reducer, observed_size)
            accepted = choose(kernel_round == 0, rounds[0], accepted)
        if self.config.kernel.steps and not refines:
            rounds.append(accepted)
        return output_of(accepted, rounds, kernel_round, first.shares)

    def restore(
        self,
        lr: Tensor,
        kernel: Tensor,
        scale: int,
        sigma: float | Tensor,
        x0: Tensor | None = None,
        tick: Tick | None = None,
    ) -> Tensor:
        """Restore with known kernels.

        Args:
            lr: (B, 3, h, w) in [0, 1].
            kernel: (B, k, k), sum 1.
            scale: s.
            sigma: noise level on the [0, 1] scale, a number or (B,).
            x0: (B, 3, s*h, s*w) first estimate; None for `config.restorer.x0`.
            tick: called after each unfolding.
        """
        out: Tensor = self.restorer(lr, kernel, scale, sigma, x0, tick)
        return out

    def refine(
        self,
        lr: Tensor,
        blur: Tensor,
        scale: int,
        sigma: Tensor,
        reducer: Reducer | None = None,
        tick: Tick | None = None,
        prior: Prior | None = None,
        corrected: Collection[int] = CORRECTED,
    ) -> list[Tensor]:
        """Return the blur (B, k, k) after each of `config.kernel.steps` kernel steps.

        Half of the unfoldings restore the image well enough, with no loss (measured in docs/training-log.md).

        Args:
            lr: (B, 3, h, w) in [0, 1], periodic.
            blur: (B, k, k) first estimate.
            scale: s.
            sigma: (B,) noise level.
            reducer: the reduction behind the blur; None for direct decimation.
            tick: called after each unfolding and each kernel step.
            prior: prior that corrects kernels; None for the model's own, if it has one.
            corrected: indices of the steps whose kernels the prior corrects, from 0.
        """
        reducer = reducer or Reducer(None, scale, "corner")
        glance = -(-self.config.restorer.unfoldings // 2)

        def restore(kernel: Tensor, told: Tensor) -> Tensor:
            state = self.restorer.start(lr, scale, told, tick=tick)
            sharp = self.restorer.unfold(state, self.restorer.operator(reducer.compose(kernel), state), 0, glance)
            return reducer.reduce(sharp.clamp(0, 1))

        steps, prior = self.config.kernel.steps, prior or self.prior
        return refine_kernel(restore, lr, blur, scale, sigma, steps, tick, prior, corrected)

    def starts_from_edges(self, scale: int) -> bool:
        """Return whether kernel steps at this scale start from the kernel estimated from edges.

        With a kernel prior they always do, since it removes the errors of that kernel. Without one, a model that
        separates blur and reduction starts from its own second answer, since edges show both together.
        """
        kernel = self.config.kernel
        if not kernel.steps or kernel.rounds:
            return False
        return kernel.prior or (not kernel.reductions and scale in EDGE_SCALES)

    def settled(self, first: Initial, size: tuple[int, int]) -> Tensor:
        """Return (B,) bool: whether kernel steps would not improve the initial kernel.

        If even the net's second answer is nearly a Gaussian, the picture hardly shows another blur. Of 50 such pictures
        the guard would accept the kernel steps' result for four (docs/training-log.md). A picture with few pixels per
        kernel pixel shows no kernel: a kernel prior would find the picture's own lines in it.

        Args:
            first: result of `initial`.
            size: (h, w) of the picture that a camera saw, LR pixels.
        """
        shape = (len(first.blur),)
        if first.start is None or self.config.kernel.rounds:
            return torch.zeros(shape, dtype=torch.bool, device=first.blur.device)
        if self.config.kernel.prior and size[0] * size[1] < _LEAST_PIXELS * self.kernel_size**2:
            return torch.ones(shape, dtype=torch.bool, device=first.blur.device)
        return is_nearly_gaussian(first.start)

    def _steps_start(self, lr: Tensor, accepted: Tensor, first: Initial, scale: int, sigma: Tensor) -> Tensor:
        """Return the kernel (B, k, k) that kernel steps start from: after rounds of the estimator, the accepted one."""
        if self.config.kernel.rounds:
            return accepted
        if self.starts_from_edges(scale):
            return edge_kernel(lr, self.kernel_size, scale, sigma)
        return accepted if first.start is None else first.start

    def _wins(
        self,
        new: Round,
        old: Round,
        state: State,
        observed_size: tuple[int, int] | None,
        terms: tuple[Acceptance, ...] = (EQUAL,),
    ) -> Tensor:
        """Return (B,) bool: whether the new image scores no worse than the old, or as much better as `terms` ask."""
        seen, reach = observed_size, self._reach(state)
        looks = [look(r.sr, state.lr, self._operator(r.kernel, state), seen, reach) for r in (new, old)]
        return wins(looks[0], looks[1], terms)

    def _reach(self, state: State) -> int:
        """Return how far, in LR pixels, what lies outside of the observed part reaches into it."""
        return self.kernel_size // state.scale + 1

    def _narrowed(
        self, first: Round, stands: Tensor, state: State, reducer: Reducer, observed_size: tuple[int, int] | None
    ) -> Round:
        """Return the first round, with narrower kernels for images that ring with theirs and keep it, (B,) `stands`."""
        quiet, reach = replace(state, tick=None), self._reach(state)
        return narrow(
            first,
            stands,
            restore=lambda blur: self._whole(quiet, blur, self.encode(blur), reducer),
            judge=lambda sr: overshoot(sr, state.scale, observed_size, reach),
        )

    def _whole(self, state: State, blur: Tensor, code: Tensor, reducer: Reducer) -> Round:
        """Run all unfoldings from `state.x`."""
        kernel = reducer.compose(blur)
        sr = self.restorer.unfold(state, self.restorer.operator(kernel, state), 0, self.config.restorer.unfoldings)
        return Round(sr, kernel, code, blur)


def restorer_of(network: BlindUSRNet | USRNet) -> USRNet:
    """Return the part of a network that restores with a known kernel."""
    return network.restorer if isinstance(network, BlindUSRNet) else network
