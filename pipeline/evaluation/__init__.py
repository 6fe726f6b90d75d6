"""How good a model is: metrics, the kernel benchmark and its report."""

from pipeline.evaluation.metrics import psnr, ssim

__all__ = ["psnr", "ssim"]
