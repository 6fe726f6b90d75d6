"""The network's configuration: the restorer, and how the blur kernel is found.

It travels inside model folders, checkpoints, MLflow runs and registered models. Importing it costs no torch, ray or
mlflow. In model folders of schema version 1 its settings are flat in `model`. `MOVED` maps each of them to its present
place, so files of that time still load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from kernels_bank.distinct import distinct
from pipeline.frozen import Frozen

Scale = Annotated[int, Field(ge=1, le=4)]
EVERY_SCALE: tuple[Scale, ...] = (1, 2, 3, 4)  # what a restorer with a known kernel supports
Width = Annotated[int, Field(ge=1, le=1024)]
_LEAST_STEPS = 5  # with a kernel prior, which corrects step four: the last kernel must come from the picture itself

# Present places of settings of `model`, by their former names.
MOVED = {
    "unfoldings": "restorer.unfoldings",
    "widths": "restorer.widths",
    "residual_blocks": "restorer.residual_blocks",
    "hyper_hidden": "restorer.hyper_hidden",
    "global_skip": "restorer.global_skip",
    "x0": "restorer.x0",
    "checkpoint_activations": "restorer.checkpoint_activations",
    "compile_prior": "restorer.compile_prior",
    "initial_kernel": "kernel.initial",
    "reductions": "kernel.reductions",
    "estimator_channels": "kernel.estimator.channels",
    "estimator_blocks": "kernel.estimator.blocks",
    "schedule": "kernel.schedule",
    "rounds": "kernel.rounds",
    "detach": "kernel.detach",
    "warm_start": "kernel.warm_start",
    "kernel_steps": "kernel.steps",
}


class RestorerConfig(Frozen):
    """Describe the restorer, USRNet. Defaults are the tiny variant (0.59 M parameters)."""

    unfoldings: int = Field(6, ge=1, le=16, description="data + prior steps (8 in the full model)")
    widths: tuple[Width, Width, Width, Width] = Field((16, 32, 64, 64), description="ResUNet channels by level")
    residual_blocks: int = Field(2, ge=1, le=16, description="a level, each way")
    hyper_hidden: int = Field(
        32, ge=1, le=1024, description="hidden width of the hyper-parameter net (64 in the full model)"
    )
    global_skip: bool = Field(
        True, description="prior = x + net(x): starts as the identity; the published prior has none, and learns it late"
    )
    x0: Literal["nearest", "bicubic"] = Field(
        "bicubic", description="first estimate, aligned with the decimation; published weights need nearest"
    )
    checkpoint_activations: bool = Field(False, description="recompute each unfolding in the backward pass")
    compile_prior: bool = Field(False, description="torch.compile the prior in training, where a compiler exists")

    def changed(self, **settings: object) -> RestorerConfig:
        """Return a copy with some settings changed. Raises ValidationError."""
        return RestorerConfig.model_validate(self.model_dump() | settings)


class EstimatorConfig(Frozen):
    """Describe DAN's estimator. Defaults are the tiny variant (0.29 M parameters)."""

    channels: int = Field(32, ge=4, le=512, description="of each of the two branches")
    blocks: int = Field(5, ge=1, le=64, description="conditional residual blocks")
    normalised: bool = Field(
        True, description="it sees images of mean 0 and standard deviation 1; off: those of models made before"
    )


class KernelConfig(Frozen):
    """Describe how the kernel is found: an initial one, rounds of the estimator, closed-form kernel steps."""

    initial: Literal["delta", "mean", "spectral"] = Field("spectral", description="kernel that the rounds start from")
    reductions: bool = Field(
        False, description="the spectral net also tells how the picture was reduced; else: by direct decimation"
    )
    estimator: EstimatorConfig = EstimatorConfig()
    rounds: int = Field(
        2, ge=0, le=8, description="kernel estimates an image; 0: the initial kernel stands, there is no estimator"
    )
    schedule: Literal["rounds", "interleaved"] = Field(
        "interleaved", description="rounds: DAN's; interleaved: one unfolding's cost"
    )
    detach: bool = Field(True, description="no gradient crosses from one round to the next")
    warm_start: bool = Field(
        False, description="schedule 'rounds' only: a round starts from the previous one's image instead of x0"
    )
    steps: int = Field(
        0, ge=0, le=16, description="closed-form kernel steps of an inference, each after a whole restoration"
    )
    prior: bool = Field(
        False, description="a net corrects some of their kernels; a run keeps that of the model that it starts from"
    )


class ModelConfig(Frozen):
    """Describe the blind network."""

    scales: Annotated[tuple[Scale, ...], AfterValidator(distinct)] = Field(
        (2,), min_length=1, max_length=4, description="scale factors this model restores"
    )
    restorer: RestorerConfig = RestorerConfig()
    kernel: KernelConfig = KernelConfig()

    def with_restorer(self, **settings: object) -> ModelConfig:
        """Return a copy with some settings of the restorer changed. Raises ValidationError."""
        return self.model_copy(update={"restorer": self.restorer.changed(**settings)})

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, settings: object) -> object:
        return nested(settings)[0] if isinstance(settings, Mapping) else settings

    @model_validator(mode="after")
    def _rounds_fit(self) -> ModelConfig:
        if self.kernel.schedule == "interleaved" and self.kernel.rounds >= self.restorer.unfoldings:
            raise ValueError(
                f"rounds = {self.kernel.rounds} do not fit between {self.restorer.unfoldings} unfoldings; "
                "lower model.kernel.rounds or use schedule 'rounds'"
            )
        if self.kernel.prior and self.kernel.steps < _LEAST_STEPS:
            raise ValueError(f"kernel.prior corrects kernels of kernel.steps, and needs {_LEAST_STEPS} of them or more")
        if self.kernel.prior and not {2, 3, 4}.issuperset(self.scales):
            raise ValueError("kernel.prior knows the scales 2, 3 and 4 alone; leave it out for others")
        return self


def nested(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Move settings of `model` from their former to their present places.

    >>> nested({"scales": [2], "kernel_steps": 6})
    ({'scales': [2], 'kernel': {'steps': 6}}, ['kernel_steps'])

    Args:
        settings: those of `model`, under former or present names.

    Returns:
        The settings in their present places, and the former names that were among them.

    Raises:
        ValueError: a setting is given under both names.
    """
    moved = [name for name in settings if name in MOVED]
    out: dict[str, Any] = {name: value for name, value in settings.items() if name not in MOVED}
    for name in moved:
        *parts, last = MOVED[name].split(".")
        inner = out
        for part in parts:
            below = inner.get(part, {})
            if not isinstance(below, Mapping):
                raise ValueError(f"model.{name} is now model.{MOVED[name]}, but model.{part} is no mapping")
            inner[part] = inner = dict(below)
        if last in inner:
            raise ValueError(f"model.{name} is now model.{MOVED[name]}, and both are given; keep the latter")
        inner[last] = settings[name]
    return out, moved
