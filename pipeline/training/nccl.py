"""Settings of GPU workers that must be made before their first CUDA call.

Each setting is a default: a value in the environment of a node takes precedence.
"""

from __future__ import annotations

import os

# Batches of several scales, and validation between them, need blocks of many sizes. With expandable segments the
# allocator avoids running out of memory by fragmentation while gigabytes are free.
_ALLOCATOR = "expandable_segments:True"
_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second was used before PyTorch 2.9
# Ranks wait for minutes while rank 0 writes pictures and checkpoints, and for the slowest to compile. Ray notices a
# lost rank within seconds, so this limit only ends operations that hang inside NCCL.
TIMEOUT_S = 900


def set_defaults() -> None:
    """Set the allocator of this process, unless the node's environment does."""
    if not any(name in os.environ for name in _ALLOCATOR_VARIABLES):
        os.environ[_ALLOCATOR_VARIABLES[1]] = _ALLOCATOR
