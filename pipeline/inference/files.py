"""Image files to restored image files, each with what was assumed to make it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import numpy as np

from kernels_bank import load_kernels
from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.progress import Progress
from pipeline.data.images import BadImageError, decode_image, encode_png
from pipeline.data.sources import Source, list_sources, read_source
from pipeline.inference.comparison import comparison
from pipeline.inference.restorer import Restored, Restorer

# RMS of what the restored image leaves unexplained, beyond the noise: 2 grey levels. Uniform blur leaves less.
_UNEXPLAINED = 2 / 255


@dataclass(frozen=True)
class Outcome:
    """What became of one input file."""

    name: str
    output: str  # URI of the restored image; empty when it was skipped
    note: str  # one line for people


def restore_files(
    model: str,
    source: str,
    output: str,
    *,
    scale: int,
    sigma: float | Literal["auto"] = "auto",
    kernel: str | None = None,
    overwrite: bool = False,
) -> list[Outcome]:
    """Restore a file, or all images of a folder, zip or prefix.

    Writes for each `NAME.EXT`: `NAME-x2.png`, `NAME-x2-kernel.png` and `.npy`, `NAME-x2.json` (kernel source, sigma,
    residual, seconds, model digest) and `NAME-x2-compare.png` (input | bicubic | restored | kernel). Files that
    cannot be decoded are skipped and reported.

    Raises:
        BadRequestError: no such model, image or kernel, they do not fit, or an output exists and `overwrite` is off.
    """
    sources = _sources(source)
    restorer = Restorer.load(model)
    known = _kernel(kernel) if kernel else None
    restorer.check(scale, kernel_given=known is not None)
    targets = {item: storage.join(output, f"{PurePosixPath(item.name).with_suffix('')}-x{scale}") for item in sources}
    _refuse_clashes(targets, overwrite=overwrite)
    outcomes = []
    with Progress("restore", len(sources), "image") as bar:
        for item in sources:
            try:
                image = decode_image(read_source(item))
            except BadImageError as error:
                outcomes.append(Outcome(item.name, "", f"skipped: {error}"))
            else:
                restored = restorer.restore(image, scale, sigma, known)
                _write(targets[item], image, restored, restorer, kernel)
                outcomes.append(Outcome(item.name, f"{targets[item]}.png", _note(image, restored)))
            bar.advance(note=item.name)
    return outcomes


def _sources(uri: str) -> list[Source]:
    """One file, or every image below a folder, zip or prefix."""
    root = storage.absolute(uri)
    path = PurePosixPath(root)
    if storage.is_file(root) and path.suffix.lower() != ".zip":
        return [Source(root, path.name)]
    return list_sources(uri)


def _kernel(path: str) -> np.ndarray:
    kernels = load_kernels(path)
    if len(kernels) != 1:
        raise BadRequestError(f"{path}: holds {len(kernels)} kernels; give a file with one")
    return np.asarray(kernels[0])


def _refuse_clashes(targets: dict[Source, str], *, overwrite: bool) -> None:
    by_target: dict[str, str] = {}
    for item, target in targets.items():
        if target in by_target:
            raise BadRequestError(f"{item.name} and {by_target[target]} would both become {target}.png; rename one")
        by_target[target] = item.name
        if not overwrite and storage.exists(f"{target}.png"):
            raise BadRequestError(f"{target}.png exists; choose another --output or give --overwrite")


def _write(target: str, image: np.ndarray, restored: Restored, restorer: Restorer, kernel: str | None) -> None:
    """The restored image last: where it is, the rest is too."""
    import io

    values = io.BytesIO()
    np.save(values, restored.kernel)
    peak = np.round(restored.kernel / restored.kernel.max() * 65535).astype(np.uint16)
    about = {
        "model": restorer.uri,
        "weights_sha256": restorer.digest,
        "scale": restored.scale,
        "sigma": restored.sigma,
        "kernel": kernel or "estimated",
        "residual": restored.residual,
        "seconds": round(restored.seconds, 3),
    }
    storage.write_bytes(f"{target}-kernel.npy", values.getvalue())
    storage.write_bytes(f"{target}-kernel.png", encode_png(peak))
    storage.write_bytes(f"{target}-compare.png", encode_png(comparison(image, restored)))
    storage.write_bytes(f"{target}.json", (json.dumps(about, indent=1) + "\n").encode())
    storage.write_bytes(f"{target}.png", encode_png(restored.image))


def _note(image: np.ndarray, restored: Restored) -> str:
    height, width = restored.image.shape[:2]
    text = (
        f"{image.shape[1]} x {image.shape[0]} -> {width} x {height}, sigma {restored.sigma * 255:.2f}/255, "
        f"residual {restored.residual * 255:.2f}/255, {restored.seconds:.1f} s"
    )
    if restored.residual > restored.sigma + _UNEXPLAINED:
        text += "; the model does not explain this image: its blur may differ from place to place"
    return text
