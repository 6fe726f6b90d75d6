"""What the terminal, the report and the pictures of an evaluation say alike: noise levels, and how bad a gap is."""

from __future__ import annotations

from typing import Literal

_SMALL, _LARGE = 0.3, 1.5  # dB below the known kernel


def noise_text(sigma: float) -> str:
    """Name a noise level of the [0, 1] scale.

    >>> noise_text(0.01)
    'noise 2.55/255'
    """
    return f"noise {sigma * 255:.2f}/255" if sigma else "no noise"


def grade(difference: float) -> Literal["good", "fair", "bad"]:
    """Judge how far a result is from that of the known kernel, in dB.

    >>> [grade(value) for value in (0.1, -0.5, -2.0)]
    ['good', 'fair', 'bad']
    """
    return "good" if difference > -_SMALL else "fair" if difference > -_LARGE else "bad"
