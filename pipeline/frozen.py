"""The base of every part of the configuration and of every file that is read back: strict and frozen."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Refuse changes, an unknown key by its path, and numbers that are infinite or none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
