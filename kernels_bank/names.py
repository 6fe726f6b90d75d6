"""The setting names that the bank, the degradation and the network share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kernels_bank.runtime.errors import BadRequestError

Reduction = Literal["direct", "area", "bicubic", "lanczos"]
Grid = Literal["corner", "centre"]
SigmaLaw = Literal["sigma", "variance", "log"]


def check_name(setting: str, value: object, known: Sequence[str]) -> None:
    """Check that a setting has one of the known values. Raises BadRequestError."""
    if value not in known:
        raise BadRequestError(f"{setting} '{value}': unknown; choose from {', '.join(known)}")
