"""Results of an evaluation that was never made."""

from __future__ import annotations

from pipeline.evaluation.row import Case, Measures, Row


def result(uri: str, kernel: int, method: str = "bicubic", value: float = 20.0, sigma: float = 0.0, **more) -> Row:
    """Make a row whose measures are all `value`, but for those that only a blind method has, and for `more`."""
    measures = {
        **dict.fromkeys(("psnr_rgb", "psnr_y", "ssim_rgb", "ssim_y", "psnr_rgb_shifted", "lr_residual"), value),
        **dict.fromkeys(("kernel_psnr", "kernel_correlation", "kernel_estimate"), None),
        "psnr_rounds": [],
        "seconds": value,
        "memory_mib": value,
    }
    return Row(Case(uri, kernel, 2, sigma), method, Measures(**(measures | more)))
