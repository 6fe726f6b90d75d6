"""Models shipped with the program: `Restorer.load("shipped:blind-sr")`. Each is a model folder with its card."""

from __future__ import annotations

from pathlib import Path

from kernels_bank.runtime.errors import BadRequestError

SCHEME = "shipped:"
FOR_PHOTOGRAPHS = f"{SCHEME}blind-sr-camera"  # the model for ordinary photographs


def shipped_folder(uri: str) -> Path:
    """Return the folder of `shipped:NAME`. Raises BadRequestError, which lists the names, for an unknown one."""
    home = Path(__file__).parent
    names = sorted(entry.parent.name for entry in home.glob("*/model.json"))
    name = uri.removeprefix(SCHEME)
    if name not in names:
        raise BadRequestError(f"{uri}: no such model comes with the program; there is {', '.join(names)}")
    return home / name
