"""How long a torus is: as short as strides and FFTs allow, since the network computes all of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.inference.boundary import friendly_length


def is_friendly(length: int) -> bool:
    """Whether it is a multiple of 8 without a prime factor beyond 11."""
    if length % 8:
        return False
    for prime in (2, 3, 5, 7, 11):
        while length % prime == 0:
            length //= prime
    return length == 1


@given(st.integers(1, 5000))
def test_no_shorter_length_would_do(least: int) -> None:
    length = friendly_length(least)
    assert length >= least
    assert is_friendly(length)
    assert not any(is_friendly(shorter) for shorter in range(least, length))
