"""The setting names that the bank, the degradation and the network share."""

from __future__ import annotations

from typing import Literal

Reduction = Literal["direct", "area", "bicubic", "lanczos"]
Grid = Literal["corner", "centre"]
