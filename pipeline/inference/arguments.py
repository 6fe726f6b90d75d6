"""Checks of the arguments that a program passes to `Restorer.restore`, before anything is computed."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

from kernels_bank.runtime.errors import BadRequestError
from pipeline.inference.planes import check_values

Interpolation = Literal["nearest", "bicubic"]
FirstEstimate = Interpolation | np.ndarray | None

# Largest distance of a kernel's sum from 1, which changes the brightness; float16 is off by up to half of it.
_SUM_ERROR = 2e-3


def number(name: str, value: object, low: float, high: float = math.inf, *, auto: bool = False) -> float:
    """Return a number of any type as a float.

    Args:
        name: name of the argument.
        value: its value.
        low: smallest valid number.
        high: largest valid number.
        auto: whether the caller also accepts `auto`, for the error.

    Raises:
        BadRequestError: it is text, a truth value, an array, NaN, or out of range.
    """
    if isinstance(value, int | float | np.integer | np.floating) and type(value) is not bool and low <= value <= high:
        return float(value)
    expected = f"a number from {low:g} to {high:g}" if high < math.inf else f"a number from {low:g}"
    raise BadRequestError(f"{name}: {'`auto` or ' if auto else ''}{expected} is expected, got {value!r:.80}")


def choice(name: str, value: object, choices: object) -> None:
    """Check that a value is one of a `Literal`'s. Raises BadRequestError."""
    if value not in (known := get_args(choices)):
        raise BadRequestError(f"{name}: one of {', '.join(known)} is expected, got {value!r:.80}")


def flag(name: str, value: object) -> bool:
    """Return a truth value. Raises BadRequestError for anything else: the text "no" would count as true."""
    if not isinstance(value, bool | np.bool_):
        raise BadRequestError(f"{name}: True or False is expected, got {value!r:.80}")
    return bool(value)


def plain_array(name: str, value: object) -> np.ndarray:
    """Return an array as one of NumPy's own class, in this machine's byte order.

    Subclasses redefine operations: a restoration of `np.matrix` would end in a crash.

    Raises:
        BadRequestError: it is no array, or some of its values are masked.
    """
    if not isinstance(value, np.ndarray):
        raise BadRequestError(f"{name}: a NumPy array is expected, got {type(value).__name__}")
    if np.ma.is_masked(value):
        raise BadRequestError(f"{name}: some of its values are masked; fill them first")
    return np.asarray(value).astype(value.dtype.newbyteorder("="), copy=False)


def given_kernel(value: object) -> np.ndarray:
    """Return a kernel if it is (k, k), k odd, real and of sum 1. Raises BadRequestError."""
    kernel = plain_array("kernel", value)
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise BadRequestError(f"kernel: (k, k) with an odd side is expected, got {kernel.shape}")
    if kernel.dtype.kind not in "iuf":
        raise BadRequestError(f"kernel: real numbers are expected, got values of type {kernel.dtype}")
    if not abs((total := float(kernel.sum(dtype=np.float64))) - 1) <= _SUM_ERROR:
        advice = "; divide them by it" if 0 < total < math.inf else ""
        raise BadRequestError(f"kernel: finite values of sum 1 are expected, their sum is {total:g}{advice}")
    return kernel


def first_estimate(x0: FirstEstimate, image: np.ndarray, scale: int) -> FirstEstimate:
    """Return x0 if it is an interpolation, or an image that fits the one to restore. Raises BadRequestError."""
    if x0 is None:
        return None
    if isinstance(x0, str):
        choice("x0", x0, Interpolation)
        return x0
    start = plain_array("x0", x0)
    expected = (scale * image.shape[0], scale * image.shape[1], 3)
    if start.shape != expected or start.dtype != image.dtype:
        raise BadRequestError(
            f"x0: {expected} {image.dtype}, as the image, is expected, got {start.shape} {start.dtype}"
        )
    check_values("x0", start)
    return start
