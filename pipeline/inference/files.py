"""Image files to restored image files, each with what was assumed to make it.

For each `NAME.EXT` in the input: `NAME-x2.png` and beside it `NAME-x2-kernel.png` and `.npy`, `NAME-x2-compare.png`
(input | bicubic | restored | kernel) and `NAME-x2.json`. The restored image is renamed into place last: where
it is, the rest is too, and the JSON's digest of the request tells whether the same command made it.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from kernels_bank import KernelBank, load_kernels
from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from pipeline.data.sources import Source, list_sources, read_source
from pipeline.images import BadImageError
from pipeline.images.convert import to_depth
from pipeline.images.decode import decode_photograph
from pipeline.images.encode import encode_photograph, encode_png
from pipeline.images.metadata import carried
from pipeline.images.photograph import FORMAT_OF_SUFFIX, SUFFIX, Format, Photograph
from pipeline.inference.comparison import comparison
from pipeline.inference.explain import warnings
from pipeline.inference.restorer import Restored, Restorer
from pipeline.inference.settings import DEFAULT_QUALITY, RestoreSettings
from pipeline.shipped import shipped_for

_BANK = "bank:"
# Settings that a result depends on, beside model, kernel and start.
_DECIDING = {"scale", "sigma", "self_ensemble", "format", "depth", "quality", "strip_metadata"}


class Item(NamedTuple):
    """One file to restore."""

    source: Source
    target: str  # URI of the result without its suffix
    kind: Format

    @property
    def result(self) -> str:
        """URI of the restored image."""
        return f"{self.target}{SUFFIX[self.kind]}"


@dataclass(frozen=True)
class Outcome:
    """What became of one input file."""

    name: str
    output: str  # URI of the restored image; empty when there is none
    note: str  # one line for people


@dataclass(frozen=True)
class Tools:
    """All that a worker needs, loaded and checked."""

    settings: RestoreSettings
    restorer: Restorer
    kernel: np.ndarray | None
    x0: Restorer | Literal["nearest", "bicubic"] | None
    model: str  # its name in reports: the version that an alias meant
    request: str  # digest of everything but the image that the result depends on

    def on(self, device: torch.device) -> Tools:
        """The same with its networks on a device."""
        x0 = self.x0.on(device) if isinstance(self.x0, Restorer) else self.x0
        restorer = self.restorer.on(device)
        return Tools(self.settings, restorer, self.kernel, x0, self.model, self.request)


def load_tools(settings: RestoreSettings, device: torch.device | None = None) -> Tools:
    """Load models and kernel.

    Raises:
        BadRequestError: no such model or kernel, or they do not fit the scale.
    """
    model = _pinned(settings.model or shipped_for(settings.scale))
    restorer = Restorer.load(model, device)
    kernel = load_kernel(settings.kernel) if settings.kernel else None
    restorer.check(settings.scale, kernel_given=kernel is not None)
    x0: Restorer | Literal["nearest", "bicubic"] | None
    match settings.x0:
        case None | "nearest" | "bicubic":
            x0 = settings.x0
        case uri:
            x0 = Restorer.load(_pinned(uri), device)
            x0.check(settings.scale, kernel_given=True)
    request = {
        "schema": 1,
        "model": restorer.digest,
        "kernel": None if kernel is None else hashlib.sha256(kernel.tobytes()).hexdigest(),
        "x0": x0.digest if isinstance(x0, Restorer) else x0,
        **settings.model_dump(include=_DECIDING),
    }
    return Tools(settings, restorer, kernel, x0, model, storage.digest_of(request))


def load_kernel(given: str) -> np.ndarray:
    """The one kernel of a file, or of a bank by `bank:URI#INDEX`. Raises BadRequestError."""
    if given.startswith(_BANK):
        uri, _, index = given.removeprefix(_BANK).rpartition("#")
        if not uri or not index.isdigit():
            raise BadRequestError(f"--kernel {given}: write bank:URI#INDEX")
        bank = KernelBank.open(uri)
        if int(index) >= len(bank):
            raise BadRequestError(f"--kernel {given}: the bank holds kernels 0 to {len(bank) - 1}")
        return np.array(bank.kernels[int(index)])
    kernels = load_kernels(given)
    if len(kernels) != 1:
        raise BadRequestError(f"{given}: holds {len(kernels)} kernels; give a file with one")
    return np.asarray(kernels[0])


def list_items(settings: RestoreSettings) -> list[Item]:
    """Every image of the input with the place of its result; results of earlier calls are no inputs.

    Raises:
        BadRequestError: there are none, or two would have the same result.
    """
    root, output = storage.absolute(settings.input), storage.absolute(settings.output)
    single = storage.is_file(root) and PurePosixPath(root).suffix.lower() != ".zip"
    if single:
        sources = [Source(root, PurePosixPath(root).name)]
    else:
        if output == root:
            raise BadRequestError(f"--output {settings.output} is the input; results would be taken for photographs")
        sources = list_sources(root, leave_out=output)
    items: dict[str, Item] = {}
    for source in sources:
        item = _item(source, settings, output)
        if (other := items.setdefault(item.target, item)) is not item:
            raise BadRequestError(f"{source.name} and {other.source.name} would both become {item.target}; rename one")
        if item.result == source.uri:
            raise BadRequestError(f"{item.result} is the input itself; choose another --name or --output")
    return list(items.values())


def split_done(items: list[Item], tools: Tools) -> tuple[list[Item], list[Item]]:
    """The items still to be done, and those that the same command has finished before.

    Raises:
        BadRequestError: a result is there that was made otherwise, and `overwrite` is off.
    """
    output = storage.absolute(tools.settings.output)
    present = {storage.join(output, name) for name, _ in storage.list_files(output, recursive=True)}
    todo, done = [], []
    for item in items:
        if item.result in present and f"{item.target}.json" in present and _made_by(item, tools):
            done.append(item)
            continue
        clashes = [f"{item.target}{end}" for end in (SUFFIX[item.kind], ".json") if f"{item.target}{end}" in present]
        if item.result in clashes and not tools.settings.overwrite:
            raise BadRequestError(
                f"{item.result} exists and this command did not make it; choose another --output or give --overwrite"
            )
        todo.append(item)
    return todo, done


def restore_item(item: Item, tools: Tools) -> Outcome:
    """Restore one file and write what belongs to it; what is wrong with the file is its outcome."""
    try:
        started = time.perf_counter()
        data = read_source(item.source)
        photograph = decode_photograph(data)
        read = time.perf_counter() - started
        settings = tools.settings
        restored = tools.restorer.restore(
            photograph.pixels,
            settings.scale,
            settings.sigma,
            tools.kernel,
            x0=tools.x0,
            self_ensemble=settings.self_ensemble,
            max_memory=settings.max_memory,
        )
        bits = {"same": photograph.pixels.dtype, "8": np.dtype(np.uint8), "16": np.dtype(np.uint16)}[settings.depth]
        pixels = to_depth(restored.image, bits)
        metadata, lost = carried(photograph.metadata, pixels, item.kind, strip=settings.strip_metadata)
        as_before = settings.format == "same" and settings.quality is None
        encoded = encode_photograph(
            Photograph(pixels, item.kind, metadata, photograph.jpeg if as_before else None),
            settings.quality or DEFAULT_QUALITY,
        )
        found = [*photograph.notes, *lost, *warnings(photograph.pixels, restored)]
        about = _about(item, tools, restored, data, found) | {
            "seconds": {
                "read": round(read, 3),
                "estimate": round(restored.estimate_seconds, 3),
                "restore": round(restored.seconds - restored.estimate_seconds, 3),
            }
        }
        _write(item, photograph, restored, encoded, about)
    except (BadImageError, BadRequestError) as error:
        return Outcome(item.source.name, "", str(error))
    except (MemoryError, torch.OutOfMemoryError) as error:
        return Outcome(item.source.name, "", f"out of memory ({type(error).__name__}); lower --max-memory")
    return Outcome(item.source.name, item.result, "; ".join([_note(photograph.pixels, restored), *found]))


def _pinned(model: str) -> str:
    """An alias as the version it means now, so that the report says what was used."""
    if not model.startswith("models:/"):
        return model
    from pipeline.tracking.registry import resolve

    name, number = resolve(model)
    return f"models:/{name}/{number}"


def _item(source: Source, settings: RestoreSettings, output: str) -> Item:
    path = PurePosixPath(source.name)
    suffix = path.suffix.lower()
    kind = FORMAT_OF_SUFFIX.get(suffix, "png") if settings.format == "same" else settings.format
    name = settings.name.format(stem=path.stem, scale=settings.scale)
    folder = [] if str(path.parent) == "." else [str(path.parent)]
    return Item(source, storage.join(output, *folder, name), kind)


def _made_by(item: Item, tools: Tools) -> bool:
    """Whether the result that is there was made by this request from this very image."""
    try:
        about = storage.read_json(f"{item.target}.json")
        return bool(
            isinstance(about, dict)
            and about.get("request") == tools.request
            and about.get("input_sha256") == hashlib.sha256(read_source(item.source)).hexdigest()
        )
    except (ArtefactError, BadImageError):
        return False


def _about(item: Item, tools: Tools, restored: Restored, data: bytes, found: list[str]) -> dict[str, Any]:
    settings = tools.settings
    return {
        "input": item.source.name,
        "input_sha256": hashlib.sha256(data).hexdigest(),
        "request": tools.request,
        "model": tools.model,
        "weights_sha256": tools.restorer.digest,
        "scale": restored.scale,
        "sigma": restored.sigma,
        "sigma_from": "estimated" if settings.sigma == "auto" else "given",
        "kernel": settings.kernel or "estimated",
        "kernel_round": restored.kernel_round,
        "kernel_spread": restored.spread,
        "x0": settings.x0,
        "self_ensemble": settings.self_ensemble,
        "residual": restored.residual,
        "warnings": found,
        "windows": restored.windows,
    }


def _write(item: Item, photograph: Photograph, restored: Restored, encoded: bytes, about: dict[str, Any]) -> None:
    """The restored image last; one that is there goes first, so that it is never beside another one's report."""
    if storage.exists(item.result):
        storage.remove_file(item.result)
    values = io.BytesIO()
    np.save(values, restored.kernel)
    peak = np.round(restored.kernel / restored.kernel.max() * 65535).astype(np.uint16)
    storage.write_bytes(f"{item.target}-kernel.npy", values.getvalue())
    storage.write_bytes(f"{item.target}-kernel.png", encode_png(peak))
    storage.write_bytes(f"{item.target}-compare.png", encode_png(comparison(photograph.pixels, restored)))
    storage.write_bytes(f"{item.target}.json", (json.dumps(about, indent=1) + "\n").encode())
    storage.write_bytes(item.result, encoded)


def _note(image: np.ndarray, restored: Restored) -> str:
    height, width = restored.image.shape[:2]
    windows = f" in {restored.windows} windows" if restored.windows > 1 else ""
    return (
        f"{image.shape[1]} x {image.shape[0]} -> {width} x {height}{windows}, sigma {restored.sigma * 255:.2f}/255, "
        f"residual {restored.residual * 255:.2f}/255, {restored.seconds:.1f} s"
    )
