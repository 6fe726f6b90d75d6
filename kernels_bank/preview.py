"""Pictures of a bank."""

from __future__ import annotations

from kernels_bank.codec import KernelCodec
from kernels_bank.spec import KernelBankSpec


def write_previews(spec: KernelBankSpec, codec: KernelCodec, uri: str) -> None:
    """To come."""
