"""What the worker processes of a training on cards have set before their first call of CUDA.

Each setting is a default: a value in the environment of a node stands.
"""

from __future__ import annotations

import os

# Batches of several scales, and validation between them, ask for blocks of many sizes. In segments that can grow the
# allocator finds room where it would otherwise run out of it with gigabytes free.
_ALLOCATOR = "expandable_segments:True"
_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second until PyTorch 2.9
# Ranks wait for rank 0 while it writes pictures and checkpoints, and for the slowest to compile: minutes. A rank that
# is lost is noticed by Ray within seconds, so this limit ends only what hangs inside of NCCL.
TIMEOUT_S = 900


def set_defaults() -> None:
    """Set the allocator of this process, unless the node's environment says how."""
    if not any(name in os.environ for name in _ALLOCATOR_VARIABLES):
        os.environ[_ALLOCATOR_VARIABLES[1]] = _ALLOCATOR
