"""The spec of a bank: counts, size, seed and the distributions of kernels. It is stored in the bank's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from kernels_bank.distinct import distinct
from kernels_bank.names import Grid, Reduction, SigmaLaw
from kernels_bank.runtime.errors import BadRequestError

Family = Literal["gaussian", "motion", "disk", "delta", "gaussian_reduced", "motion_reduced", "reduction"]
FAMILIES: tuple[Family, ...] = get_args(Family)
COMPOSITES: tuple[Family, ...] = ("gaussian_reduced", "motion_reduced", "reduction")
REDUCING = ("scale", "grid", "reductions")  # the settings of composites besides those of their blurs

Count = Annotated[int, Field(ge=0, le=100_000_000)]
Range = tuple[Annotated[float, Field(gt=0, lt=1e6)], Annotated[float, Field(gt=0, lt=1e6)]]


class KernelBankSpec(BaseModel):
    """Describe a bank in full: equal specs give bit-equal kernels. Frozen, and an unknown setting is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    gaussian: Count = Field(100_000, description="Gaussian kernels, isotropic and anisotropic")
    motion: Count = Field(100_000, description="camera-shake kernels")
    disk: Count = Field(0, description="defocus kernels")
    delta: Count = Field(0, description="kernels without any blur")
    gaussian_reduced: Count = Field(0, description="composites: Gaussian kernels followed by a reduction")
    motion_reduced: Count = Field(0, description="composites: camera-shake kernels followed by a reduction")
    reduction: Count = Field(0, description="reductions alone")
    size: int = Field(21, ge=3, le=99, description="kernel side in pixels, odd")
    seed: int = Field(0, ge=0, lt=2**63, description="of all draws")

    sigma: Range = Field((0.6, 5.0), description="Gaussian: standard deviation of each axis, in pixels")
    sigma_law: SigmaLaw = Field(
        "sigma", description="what is uniform over its range: sigma, its square or its logarithm"
    )
    isotropic: float = Field(0.25, ge=0, le=1, description="Gaussian: share with equal axes")
    noise: float = Field(
        0.0, ge=0, le=1, description="Gaussian: multiplicative noise, each pixel times 1 + U(0, noise)"
    )
    extent: Range = Field(
        (2.0, 26.0), description="motion, length: longer side of the path, in pixels; cut to what fits"
    )
    memory: Range = Field(
        (0.02, 10.0),
        description="motion, curvature: exposures until the force on the hand is another; short is a tangle",
    )
    turn: float = Field(3.3, ge=0, description="motion, curvature: standard deviation of the turn, radians an exposure")
    narrowing: float = Field(
        3.0, ge=1, description="motion, anisotropy: a path is narrowed across a random axis by up to this factor"
    )
    disk_radius: Range = Field((0.5, 8.0), description="defocus: radius in pixels; cut to what fits")

    scale: int = Field(2, ge=1, le=8, description="composites: a picture becomes this many times as small")
    grid: Grid = Field("centre", description="composites: where LR pixels lie in their blocks")
    reductions: Annotated[tuple[Reduction, ...], AfterValidator(distinct)] = Field(
        ("area", "bicubic", "lanczos"),
        min_length=1,
        description="composites: kernel i has entry i modulo their number",
    )

    components: int | None = Field(None, ge=1, description="length of the kernel code")
    explained_variance: float | None = Field(
        None, gt=0, le=1, description="share of the variance the code holds (0.99 when neither is given)"
    )
    standardize: bool = Field(True, description="codes of unit variance; off: DAN's plain PCA coefficients")

    @model_validator(mode="after")
    def _consistent(self) -> KernelBankSpec:
        self._refuse_misfits()
        return self

    def _refuse_misfits(self) -> None:
        if self.size % 2 == 0:
            raise ValueError(f"size {self.size} is even; a centre pixel needs an odd side")
        if self.count == 0:
            raise ValueError(f"{', '.join(FAMILIES)} are all 0; ask for at least one kernel")
        if self.motion and self.size < 7:
            raise ValueError(f"size {self.size}: motion kernels need at least 7; choose motion 0 or a larger size")
        ranges = {"sigma": self.sigma, "extent": self.extent, "memory": self.memory, "disk_radius": self.disk_radius}
        for name, (low, high) in ranges.items():
            if low > high:
                raise ValueError(f"{name} ({low}, {high}): the lower bound comes first")
        if self.components is not None and self.components > self.size**2:
            raise ValueError(
                f"components {self.components}: a {self.size} x {self.size} kernel has {self.size**2} pixels"
            )
        if self.signed:
            self._fitting_reductions()
        elif without_effect := sorted(self.model_fields_set.intersection(REDUCING)):
            raise ValueError(
                f"{', '.join(without_effect)}: no effect without composites; ask for some of {', '.join(COMPOSITES)}"
            )

    def _fitting_reductions(self) -> None:
        from kernels_bank.reduction import reduction_line

        for name in self.reductions:
            if (needed := len(reduction_line(name, self.scale, self.grid))) > self.size:
                raise ValueError(
                    f"size {self.size}: {name} at scale {self.scale} on the {self.grid} grid has {needed} pixels; "
                    f"choose a size of at least {needed} or other reductions"
                )

    @model_serializer(mode="wrap")
    def _without_unused(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A bank without composites keeps the bytes, and so the digests, from before composites were added.
        values: dict[str, Any] = written(self)
        return values if self.signed else {n: v for n, v in values.items() if n not in {*COMPOSITES, *REDUCING}}

    @property
    def signed(self) -> bool:
        """Return whether kernels may have negative lobes, those of a reduction."""
        return any(self.counts[family] for family in COMPOSITES)

    @property
    def count(self) -> int:
        """Return the number of all kernels."""
        return sum(self.counts.values())

    @property
    def counts(self) -> dict[Family, int]:
        """Return the number of kernels of each family, in the order of the bank."""
        return {family: getattr(self, family) for family in FAMILIES}


# `article`: the default bank, by name. `camera`: blurs followed by reductions, on the grid of cameras.
# The others are the literature's kernel sets. DAN setting 1: isotropic. DAN setting 2 is DIV2KRK's: anisotropic with
# noise. USRNet: half Gaussians with *variances* uniform in 0.6 ... 12, half motion.
_CAMERA: dict[str, object] = {
    "gaussian": 0,
    "motion": 0,
    "gaussian_reduced": 100_000,
    "motion_reduced": 100_000,
    "reduction": 3,
}
PRESETS: dict[str, dict[str, object]] = {
    "article": {"gaussian": 100_000, "motion": 100_000, "size": 21},
    "camera-x2": _CAMERA | {"size": 25, "scale": 2},
    "camera-x3": _CAMERA | {"size": 25, "scale": 3},
    "camera-x4": _CAMERA | {"size": 31, "scale": 4},
    "dan1-x2": {"motion": 0, "size": 21, "sigma": (0.2, 2.0), "isotropic": 1.0, "components": 10},
    "dan1-x3": {"motion": 0, "size": 21, "sigma": (0.2, 3.0), "isotropic": 1.0, "components": 10},
    "dan1-x4": {"motion": 0, "size": 21, "sigma": (0.2, 4.0), "isotropic": 1.0, "components": 10},
    "dan2-x2": {"motion": 0, "size": 11, "sigma": (0.6, 5.0), "isotropic": 0.0, "noise": 0.25, "components": 10},
    "dan2-x4": {"motion": 0, "size": 31, "sigma": (0.6, 5.0), "isotropic": 0.0, "noise": 0.25, "components": 15},
    "usrnet": {"size": 25, "sigma": (0.6**0.5, 12.0**0.5), "sigma_law": "variance", "isotropic": 0.0},
}


def preset_spec(name: str, explicit: Mapping[str, object]) -> KernelBankSpec:
    """Return a preset of `PRESETS` with some settings replaced.

    Raises:
        BadRequestError: there is no preset of this name, or the settings do not fit it.
    """
    if name not in PRESETS:
        raise BadRequestError(f"preset {name}: unknown; choose from {', '.join(PRESETS)}")
    return checked_spec(PRESETS[name] | dict(explicit), f"preset {name} with {', '.join(explicit)}")


def checked_spec(settings: Mapping[str, object], given: str) -> KernelBankSpec:
    """Return the spec for some settings.

    Args:
        settings: settings by name; all others have their defaults.
        given: form in which the user gave them, for the error.

    Raises:
        BadRequestError: the settings are invalid.
    """
    try:
        return KernelBankSpec.model_validate(settings)
    except ValidationError as error:
        reasons = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
        raise BadRequestError(f"{given}: {reasons}") from error
