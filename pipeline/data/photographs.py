"""Six real photographs that ship inside the wheels of scikit-image and scikit-learn: the quickstart's data."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.output import write_once

_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
TRAIN = {"coffee.png": "skimage", "rocket.jpg": "skimage", "china.jpg": "sklearn", "flower.jpg": "sklearn"}
HELD_OUT = {"astronaut.png": "skimage", "chelsea.png": "skimage"}


def copy_photographs(folder: Path) -> tuple[Path, Path]:
    """Copy the photographs to `folder`/train and `folder`/held-out, unless they are there; return the two folders.

    Raises:
        BadRequestError: one of the two packages is not installed, or a different file has one of the names.
    """
    write_once(
        {
            folder / split / name: _source(name, package).read_bytes()
            for split, photographs in (("train", TRAIN), ("held-out", HELD_OUT))
            for name, package in photographs.items()
        }
    )
    return folder / "train", folder / "held-out"


def check_photographs() -> int:
    """Count the bundled photographs. Raises BadRequestError if one of the two packages is missing."""
    return len([_source(name, package) for name, package in (TRAIN | HELD_OUT).items()])


def _source(name: str, package: str) -> Path:
    """Find a photograph without importing its package: importing scikit-learn takes seconds."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise BadRequestError(f"package {package} is not installed; pip install -e '.[quickstart]' in the checkout")
    return Path(spec.origin).parent / _FOLDERS[package] / name
