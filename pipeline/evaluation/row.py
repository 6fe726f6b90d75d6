"""The records of an evaluation: the case, the method, and every measure of its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pydantic import TypeAdapter


@dataclass(frozen=True)
class Case:
    """Hold an image and its degradation."""

    image: str  # URI
    kernel: int  # 1-based number in the kernel set
    scale: int
    sigma: float  # [0, 1] scale

    @property
    def name(self) -> str:
        """Return the image's file name."""
        return PurePosixPath(self.image).name


@dataclass(frozen=True)
class Measures:
    """Hold every measure of one result; None if it does not apply to the method."""

    psnr_rgb: float  # dB, like all PSNR here
    psnr_y: float
    ssim_rgb: float
    ssim_y: float
    psnr_rgb_shifted: float  # after the best translation
    kernel_psnr: float | None  # of the estimated kernel, after the best shift
    kernel_correlation: float | None
    lr_residual: float | None  # RMS on the [0, 1] scale
    psnr_rounds: list[float]  # RGB PSNR after each kernel estimate
    kernel_estimate: list[float] | None  # k * k values, row by row
    seconds: float
    memory_mib: float | None  # peak above the memory that the process held before


@dataclass(frozen=True)
class Row:
    """Hold the result of one method on one case."""

    case: Case
    method: str
    measures: Measures

    @property
    def setting(self) -> tuple[int, float]:
        """Return scale and noise level, which determine the table."""
        return self.case.scale, self.case.sigma

    def metric(self, name: str) -> float | None:
        """Return a measure by its name."""
        value: float | None = getattr(self.measures, name)
        return value

    def psnr(self, name: str) -> float:
        """Return a PSNR, which every result has, by its name."""
        return float(getattr(self.measures, name))

    def as_dict(self) -> dict[str, Any]:
        """Return the row in the form of results.parquet and the journal."""
        case = self.case
        key = {"image": case.name, "kernel": case.kernel, "scale": case.scale, "sigma": case.sigma, "uri": case.image}
        return key | {"method": self.method} | dataclasses.asdict(self.measures)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Row:
        """Make a row from the result of `as_dict`. Raises KeyError for a missing value, ValueError for a wrong one."""
        measures = _MEASURES.validate_python({field.name: values[field.name] for field in dataclasses.fields(Measures)})
        case = Case(values["uri"], values["kernel"], values["scale"], values["sigma"])
        return cls(case, values["method"], measures)


_MEASURES = TypeAdapter(Measures)
