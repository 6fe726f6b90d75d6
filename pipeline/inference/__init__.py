"""Restoring real photographs with a trained model."""

from pipeline.inference.restorer import Restored, Restorer

__all__ = ["Restored", "Restorer"]
