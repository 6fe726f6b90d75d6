"""Models that come with the program: `Restorer.load("shipped:blind-sr")`. Each is a model folder with its card."""

from __future__ import annotations

from pathlib import Path

from kernels_bank.runtime.errors import BadRequestError

SCHEME = "shipped:"


def shipped_for(scale: int) -> str:
    """Return the model to restore photographs as people have them with, at this scale: x2 has one of its own."""
    return f"{SCHEME}blind-sr-camera-x2" if scale == 2 else f"{SCHEME}blind-sr-camera"


def shipped_folder(uri: str) -> Path:
    """Return the folder of `shipped:NAME`. Raises BadRequestError, with the names there are, for another one."""
    home = Path(__file__).parent
    names = sorted(entry.parent.name for entry in home.glob("*/model.json"))
    name = uri.removeprefix(SCHEME)
    if name not in names:
        raise BadRequestError(f"{uri}: no such model comes with the program; there is {', '.join(names)}")
    return home / name
