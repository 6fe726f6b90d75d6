"""All randomness of the pipeline: a pure function of (run seed, epoch, sample key, purpose).

Counter-based Philox streams keyed by a hash: the same key gives the same draw on any worker, any node, in any
order. Python's own `hash` differs from process to process and is never used.
"""

from __future__ import annotations

import hashlib

import numpy as np


def rng(seed: int, *, epoch: int, key: str, purpose: str) -> np.random.Generator:
    """Make the generator of one sample for one purpose.

    Args:
        seed: seed of the run.
        epoch: epoch of the run.
        key: key of the sample.
        purpose: "crop", "kernel", "noise", "order" ...
    """
    return np.random.Generator(np.random.Philox(key=_hash(f"{seed}/{epoch}/{purpose}/{key}", 16)))


def fraction(key: str, *, purpose: str) -> float:
    """Return a fixed number in [0, 1) for a key, which decides for instance what belongs to the validation split."""
    return _hash(f"{purpose}/{key}", 8) / 2.0**64


def torch_seed(seed: int, *, epoch: int, key: str, purpose: str) -> int:
    """Return a 63-bit seed for `torch.Generator.manual_seed` or `torch.manual_seed`.

    Args:
        seed: seed of the run.
        epoch: epoch of the run.
        key: key of the sample.
        purpose: what the seed is used for.
    """
    return _hash(f"{seed}/{epoch}/{purpose}/{key}", 8) >> 1


def _hash(text: str, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "big")
