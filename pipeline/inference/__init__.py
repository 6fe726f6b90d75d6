"""Restoring real photographs with a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.inference.restorer import Restored, Restorer

__all__ = ["Restored", "Restorer"]


def __getattr__(name: str) -> object:
    # Imported late: a command's --help imports this package's settings, not torch.
    if name in __all__:
        from pipeline.inference import restorer

        return getattr(restorer, name)
    raise AttributeError(f"module 'pipeline.inference' has no attribute '{name}'")
