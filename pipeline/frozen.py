"""The strict, frozen base class of every part of the configuration and of every file that is read back."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, field_validator

_LARGEST = 2**63 - 1  # the limit of files, seeds and counters of other programs

Value_T = TypeVar("Value_T")


class Frozen(BaseModel):
    """Refuse changes, unknown keys (named by their path), infinity, NaN, and integers beyond 64 bits."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _within_64_bits(cls, value: Value_T) -> Value_T:
        values = value if isinstance(value, (tuple, list)) else (value,)
        if any(isinstance(number, int) and abs(number) > _LARGEST for number in values):
            raise ValueError(f"an integer beyond 64 bits; at most {_LARGEST} is possible")
        return value
