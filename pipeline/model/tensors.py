"""Named tensors from untrusted bytes: safetensors, and `.pth` files with `weights_only=True`."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from kernels_bank.runtime.errors import ArtefactError
from pipeline.model.foreign import Found, find_state
from pipeline.model.int8 import unpacked

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_HEADER_BYTES = 4 << 20  # limit for a safetensors header; the full model's has 60 KB


def read_tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """Parse a state dict: safetensors by the suffix of its name, otherwise `.pth` in a layout of `foreign.py`.

    Raises:
        ArtefactError: not a state dict, one that claims more than its file holds, or a value that is not finite.
    """
    return read_checkpoint(data, where).state


def read_checkpoint(data: bytes, where: str) -> Found:
    """Parse a state dict as `read_tensors` does, with its place in the file. Raises ArtefactError."""
    try:
        if where.endswith(".safetensors"):
            if int.from_bytes(data[:8], "little") > _HEADER_BYTES:
                raise ValueError("its header is too long")
            state: Any = unpacked(safetensors.torch.load(data))
        else:
            state = unpickle_tensors(data)
    except Exception as error:
        # Torch's reader fails in many ways on bytes that are not a checkpoint: IndexError, KeyError ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if reason.startswith("Weights only load failed"):  # torch's advice is to run what the file holds
            reason = "it holds other objects, which are not loaded; save the network's state_dict() alone"
        raise ArtefactError(f"{where}: not a checkpoint of tensors ({reason})") from error
    found = find_state(state, where)
    check_finite(found.state, where)
    return found


def unpickle_tensors(data: bytes) -> Any:  # noqa: ANN401 - what was saved
    """Load a file of `torch.save` on the CPU, tensors and plain values only.

    Raises:
        ValueError: compressed parts, or tensors that are larger than the file; both could grow to any size in memory.
        Exception: any error of torch's reader for other bytes.
    """
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError("its parts are compressed, which torch.save never does")
    value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    tensors = [tensor for _, tensor in _tensors(value)]
    if any(tensor.layout != torch.strided or tensor.device.type != "cpu" for tensor in tensors):
        raise ValueError("it holds other than plain tensors")
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > 2 * len(data):
        raise ValueError("its tensors are larger than the file")
    return value


def check_finite(value: Any, where: str) -> None:  # noqa: ANN401 - tensors, in mappings and lists
    """Check all tensors of a nested value for NaN and infinity. Raises ArtefactError that names the first."""
    for name, tensor in _tensors(value):
        # Checked in float32, as they are used: large float64 values overflow there, and not every dtype has isfinite.
        numbers = tensor.float() if tensor.is_floating_point() else tensor
        if (numbers.is_floating_point() or numbers.is_complex()) and not bool(torch.isfinite(numbers).all()):
            raise ArtefactError(
                f"{where}: {name} is not finite in float32 (NaN or infinity); these weights are of no use"
            )


def fill(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict strictly. Raises ArtefactError that lists missing, unexpected and misfitting tensors."""
    check_fit(model, state, where)
    model.load_state_dict(dict(state))


def check_fit(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Compare names, shapes and types, also with a model on the meta device. Raises ArtefactError."""
    own = model.state_dict()
    problems = [f"missing {_some(own.keys() - state.keys())}"] if own.keys() - state.keys() else []
    if extra := state.keys() - own.keys():
        problems.append(f"left over {_some(extra)}")
    wrong = [name for name in sorted(own.keys() & state.keys()) if own[name].shape != state[name].shape]
    problems += [f"{name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}" for name in wrong[:4]]
    odd = [name for name in sorted(own.keys() & state.keys()) if not _takes(own[name].dtype, state[name].dtype)]
    problems += [
        f"{name} is of type {_plain(state[name].dtype)}, expected {_expected(own[name].dtype)}" for name in odd[:4]
    ]
    if problems:
        raise ArtefactError(f"{where}: the tensors do not fit the model: {'; '.join(problems)}")


def _takes(own: torch.dtype, given: torch.dtype) -> bool:
    """Return whether a model's tensor accepts values of this dtype; others would be rounded silently."""
    return given in _FLOATS if own.is_floating_point else given == own


def _expected(own: torch.dtype) -> str:
    return " or ".join(_plain(kind) for kind in (_FLOATS if own.is_floating_point else (own,)))


def _plain(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _some(names: set[str]) -> str:
    first = sorted(name[:100] for name in names)[:8]
    return ", ".join(first) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:  # noqa: ANN401 - nested
    if isinstance(value, Tensor):
        yield name or "tensor", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _tensors(item, f"{name}.{position}")
