"""Evaluation protocols as data: how the LR image is made, how the output is compared, and the headline metric."""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, ValidationError, model_validator
from scipy import signal

from kernels_bank import benchmark_kernels
from kernels_bank.distinct import distinct
from kernels_bank.names import Grid, Reduction
from kernels_bank.reduction import reduction_line
from kernels_bank.runtime.errors import BadRequestError
from pipeline.config import JpegQuality, Sigma
from pipeline.evaluation.dan_degradation import equivalent_kernel, gaussian8
from pipeline.frozen import Frozen
from pipeline.mistakes import check_given
from pipeline.model_config import Scale
from pipeline.yaml_file import read_yaml

_Width = Annotated[float, Field(gt=0)]
_Sigmas = Annotated[tuple[Sigma, ...], Field(min_length=1), AfterValidator(distinct)]


class Protocol(Frozen):
    """Define all that affects the numbers of a table. Noise is the same for every image of one size."""

    # Part of the names of metrics and of a folder. Names that MLflow would refuse after the work are refused here.
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)
    multiple: int = Field(8, ge=1, description="images are cropped to multiples of lcm(scale, this)")
    crop: int | None = Field(None, ge=48, description="longest side kept, cut from the middle; none keeps whole images")
    degradation: Literal["usrnet", "dan", "camera"] = Field(
        "usrnet",
        description="usrnet: circular convolution, upper-left pixel; dan: mirrored correlation, bicubic; "
        "camera: mirrored convolution, a reduction, noise, 8 bit, JPEG; the noise level is estimated",
    )
    reduction: Reduction = Field("area", description="camera: how the picture becomes small")
    jpeg: JpegQuality | None = Field(None, description="camera: quality of a JPEG with 4:2:0 chroma; none: no JPEG")
    gaussian_widths: dict[Scale, tuple[_Width, _Width]] | None = Field(
        None, description="by scale, from where to where the widths of its own 8 Gaussians go; none: kernels are given"
    )
    lr_quantize: Literal["none", "round", "floor"] = "floor"
    sigmas: dict[Scale, _Sigmas] = Field(min_length=1, description="noise levels by scale, [0, 1] scale")
    noise_seed: int = Field(0, ge=0, description="the same for every image")
    round_output: bool = Field(True, description="clamp and round the output to 8 bit before comparing")
    border: Literal["scale", "scale^2"] = "scale^2"
    headline: Literal["psnr_rgb", "psnr_y"] = "psnr_rgb"

    def border_pixels(self, scale: int) -> int:
        """Return the HR pixels cropped from every side before comparing."""
        return scale if self.border == "scale" else scale * scale

    def size_multiple(self, scale: int) -> int:
        """Return the number of which height and width of the HR image are multiples."""
        return lcm(scale, self.multiple)

    def kernels(self, scale: int) -> np.ndarray:
        """Return the protocol's own kernels (8, 21, 21), otherwise the twelve of the benchmark (12, 25, 25)."""
        if self.gaussian_widths is None:
            return benchmark_kernels()
        return gaussian8(self.gaussian_widths[scale])

    @property
    def grid(self) -> Grid:
        """Return the position of LR pixels in their blocks: the corner only for direct decimation."""
        return "corner" if self.degradation == "usrnet" else "centre"

    def assumed_kernel(self, kernel: np.ndarray, scale: int) -> np.ndarray:
        """Convert a kernel to its equivalent in the restorers' model, y = (x (*) k) down_s."""
        match self.degradation:
            case "usrnet":
                return kernel
            case "dan":
                return equivalent_kernel(kernel, scale)
            case "camera":
                line = reduction_line(self.reduction, scale, self.grid)
                return signal.convolve2d(kernel.astype(np.float64), np.outer(line, line)).astype(np.float32)

    @model_validator(mode="before")
    @classmethod
    def _refuse_mistakes(cls, given: object) -> object:
        """Refuse empty strings, and booleans in place of numbers, as settings of jobs do."""
        if isinstance(given, Mapping):
            check_given(given, cls)
        return given

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Protocol:
        """Refuse a setting that the degradation does not use."""
        for name in ("jpeg", "reduction"):
            if self.degradation != "camera" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect without degradation 'camera'; leave it out")
        return self

    @model_validator(mode="after")
    def _kernels_for_all_scales(self) -> Protocol:
        if self.gaussian_widths is not None and not set(self.sigmas) <= set(self.gaussian_widths):
            raise ValueError(f"gaussian_widths: give a pair for each of the scales {sorted(self.sigmas)}")
        return self


_TABLE1: dict[int, tuple[float, ...]] = {1: (0.0,), 2: (0.0,), 3: (0.0, 2.55 / 255, 7.65 / 255), 4: (0.0,)}

_CAMERA_REDUCTIONS: tuple[Reduction, ...] = ("area", "bicubic")

PROTOCOLS = {
    # USRNet (CVPR 2020), Table 1, as computed by its published script: circular blur whose LR image is floored to
    # 8 bit, upper-left decimation, RGB PSNR with a border of s^2. The table has noise only at x3.
    "usrnet-table1": Protocol(name="usrnet-table1", sigmas=_TABLE1),
    # The same without any quantisation, so that the method's model holds exactly.
    "float": Protocol(name="float", sigmas=_TABLE1, lr_quantize="none", round_output=False),
    # DAN (NeurIPS 2020), setting 1: eight widths per scale, bicubic downsampling, 8-bit LR images, PSNR of the luma.
    "dan-gaussian8": Protocol(
        name="dan-gaussian8",
        multiple=1,
        degradation="dan",
        gaussian_widths={2: (0.8, 1.6), 3: (1.35, 2.4), 4: (1.8, 3.2)},
        lr_quantize="round",
        sigmas={2: (0.0,), 3: (0.0,), 4: (0.0,)},
        border="scale",
        headline="psnr_y",
    ),
    # Pictures as from cameras and web sites: cropped from a larger scene, on the centred grid of resizing functions,
    # with noise, 8 bit and JPEG; the noise level is not known.
    **{
        f"camera-{reduction}" + (f"-q{quality}" if quality else ""): Protocol(
            name=f"camera-{reduction}" + (f"-q{quality}" if quality else ""),
            degradation="camera",
            reduction=reduction,
            jpeg=quality,
            lr_quantize="round",
            sigmas=dict.fromkeys((2, 4), (0.0, 2 / 255, 5 / 255)),
        )
        for reduction in _CAMERA_REDUCTIONS
        for quality in (None, 95, 85, 70)
    },
}


def load_protocol(name_or_path: str) -> Protocol:
    """Load a protocol by its name, or from a YAML file with the fields of `Protocol`.

    Raises:
        BadRequestError: there is no such name or file, the file's fields do not validate, or it uses the name of
            another protocol, whose numbers would then be mixed with its own.
    """
    if name_or_path in PROTOCOLS:
        return PROTOCOLS[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        raise BadRequestError(
            f"protocol '{name_or_path}': neither a known name ({', '.join(PROTOCOLS)}) nor a YAML file"
        )
    try:
        protocol = Protocol.model_validate(read_yaml(name_or_path, f"protocol {path}"))
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}." for part in first["loc"]).rstrip(".")
        said = first["msg"].removeprefix("Value error, ")
        raise BadRequestError(": ".join(part for part in (f"protocol {path}", where, said) if part)) from error
    if protocol.name in PROTOCOLS and protocol != PROTOCOLS[protocol.name]:
        raise BadRequestError(f"protocol {path}: name '{protocol.name}' is that of a known one; choose another")
    return protocol
