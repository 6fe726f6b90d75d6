"""Find a USRNet in the checkpoint files of other programs, and report which part of a file is read.

KAIR writes plain state dicts: `<step>_G.pth` holds the network, `<step>_E.pth` its moving average. BasicSR and related
programs keep several state dicts in one file: `params`, and the moving average as `params_ema`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kernels_bank.runtime.errors import ArtefactError

_LAYOUTS = ("params_ema", "params")  # by preference: averaged weights restore better
_WRAPPED = "module."  # prefix of the names in a network saved from inside DataParallel


@dataclass(frozen=True)
class Found:
    """Hold the state dict chosen from a file, its place in the file, and what else the file holds."""

    state: dict[str, Tensor]
    read: str
    left: tuple[str, ...] = ()


def find_state(content: Any, where: str) -> Found:  # noqa: ANN401 - whatever was saved
    """Choose the state dict in a checkpoint's content.

    Raises:
        ArtefactError: there is none, or it is a checkpoint of DAN, whose estimator has another meaning.
    """
    read = "all tensors"
    left: tuple[str, ...] = ()
    if isinstance(content, Mapping):
        layout = next((name for name in _LAYOUTS if isinstance(content.get(name), Mapping)), None)
        if layout is not None:
            left = tuple(sorted(str(name)[:100] for name in content.keys() - {layout}))
            content, read = content[layout], layout
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ArtefactError(f"{where}: not a state dict (a mapping from names to tensors)")
    state = {str(name): value for name, value in content.items()}
    if all(name.startswith(_WRAPPED) for name in state):
        state = {name.removeprefix(_WRAPPED): value for name, value in state.items()}
    if any(name.startswith("Estimator.") for name in state):
        raise ArtefactError(
            f"{where}: a checkpoint of DAN, which cannot be used here: its estimator gives whole codes, in a PCA of "
            "its own and for images of its own restorer, where this network's corrects the code it started from"
        )
    return Found(state, read, left)


def beside(uri: str) -> tuple[str, str] | None:
    """Return the paths of KAIR's network and its moving average if `uri` follows the naming of either.

    >>> beside("kair/5000_E.pth")
    ('kair/5000_G.pth', 'kair/5000_E.pth')
    >>> beside("usrnet.pth")
    """
    for ending in ("_G.pth", "_E.pth"):
        if uri.endswith(ending):
            stem = uri.removesuffix(ending)
            return f"{stem}_G.pth", f"{stem}_E.pth"
    return None
