"""The evaluation of a model: metrics, the kernel benchmark and its report."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.evaluation.metrics import psnr, ssim

__all__ = ["psnr", "ssim"]


def __getattr__(name: str) -> object:
    # Imported late: a command's --help imports this package's settings, not OpenCV.
    if name in __all__:
        from pipeline.evaluation import metrics

        return getattr(metrics, name)
    raise AttributeError(f"module 'pipeline.evaluation' has no attribute '{name}'")
