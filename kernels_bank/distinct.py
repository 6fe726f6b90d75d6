"""A check for settings that take several values."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

Value_T = TypeVar("Value_T", bound=Hashable)


def distinct(values: tuple[Value_T, ...] | None) -> tuple[Value_T, ...] | None:
    """Refuse repeated values, which would be computed and counted twice."""
    seen = set()
    for value in values or ():
        if value in seen:
            raise ValueError(f"{value} is given more than once")
        seen.add(value)
    return values
