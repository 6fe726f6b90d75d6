"""Wording shared by terminal, report and pictures of an evaluation: noise levels, and the grade of a gap."""

from __future__ import annotations

from typing import Literal

_SMALL, _LARGE = 0.3, 1.5  # dB below the result with the known kernel


def noise_text(sigma: float) -> str:
    """Name a noise level of the [0, 1] scale.

    >>> noise_text(0.01)
    'noise 2.55/255'
    """
    return f"noise {sigma * 255:.2f}/255" if sigma else "no noise"


def grade(difference: float) -> Literal["good", "fair", "bad"]:
    """Grade the difference in dB of a result to that with the known kernel.

    >>> [grade(value) for value in (0.1, -0.5, -2.0)]
    ['good', 'fair', 'bad']
    """
    return "good" if difference > -_SMALL else "fair" if difference > -_LARGE else "bad"
