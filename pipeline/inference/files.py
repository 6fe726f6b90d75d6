"""Restoration of image files to image files, each with a report of the assumptions made."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from kernels_bank import KernelBank, load_kernels
from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import BadRequestError
from pipeline.catalogue import locate
from pipeline.data.sources import read_source
from pipeline.images import BadImageError
from pipeline.images.convert import has_alpha, to_depth
from pipeline.images.decode import decode_photograph
from pipeline.images.encode import encode_photograph, encode_png, refuse_format
from pipeline.images.metadata import carried
from pipeline.images.photograph import Photograph
from pipeline.inference.comparison import comparison
from pipeline.inference.explain import APART, diagnose
from pipeline.inference.field_picture import described, mosaic
from pipeline.inference.progress import Listener
from pipeline.inference.restore_jobs import RestoreJob
from pipeline.inference.restorer import Restored, Restorer
from pipeline.inference.settings import DEFAULT_QUALITY, RestoreSettings
from pipeline.model.blind import ESTIMATE_VERSION

_BANK = "bank:"
# Settings that affect a result, besides model, kernel and start.
_DECIDING = {"scale", "sigma", "self_ensemble", "format", "depth", "quality", "strip_metadata"}
# Settings that affect a result only if changed from their defaults, as versions before them did not have them.
_DECIDING_IF_SET = {"strength", "kernel_field", "trust", "precision"}

# System errors about the name of one result, which may not affect other results.
_OF_NAMES = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}


@dataclass(frozen=True)
class RestoreResult:
    """Hold the outcome for one input file."""

    name: str
    output: str  # URI of the restored image; empty if there is none
    note: str  # one line for the user


@dataclass(frozen=True)
class RestoreContext:
    """Hold the loaded and checked models and settings for a worker."""

    settings: RestoreSettings
    restorer: Restorer
    kernel: np.ndarray | None
    x0: Restorer | Literal["nearest", "bicubic"] | None
    request: str  # digest of all that affects a result except the image

    def on(self, device: torch.device) -> RestoreContext:
        """Return a copy with the networks on a device."""
        x0 = self.x0.on(device) if isinstance(self.x0, Restorer) else self.x0
        restorer = self.restorer.on(device)
        return RestoreContext(self.settings, restorer, self.kernel, x0, self.request)


def load_context(settings: RestoreSettings, device: torch.device | None = None) -> RestoreContext:
    """Load models and kernel.

    Raises:
        BadRequestError: there is no such model or kernel, or they do not fit the scale.
    """
    # An alias is resolved once, so that the report names the version that was used. Lookups come first, since a network
    # takes seconds to load.
    model = locate(settings.model)
    start = settings.x0 if settings.x0 in {None, "nearest", "bicubic"} else locate(str(settings.x0))
    kernel = load_kernel(settings.kernel) if settings.kernel else None
    restorer = Restorer.load(model, device, settings.precision)
    restorer.check(settings.scale, kernel_given=kernel is not None)
    x0: Restorer | Literal["nearest", "bicubic"] | None
    match start:
        case None | "nearest" | "bicubic":
            x0 = start
        case _:
            x0 = Restorer.load(start, device, settings.precision)
            x0.check(settings.scale, kernel_given=True)
    request = {
        "schema": 1,
        "model": restorer.digest,
        "kernel": None if kernel is None else hashlib.sha256(kernel.tobytes()).hexdigest(),
        "x0": x0.digest if isinstance(x0, Restorer) else x0,
        **settings.model_dump(include=_DECIDING),
        **settings.model_dump(include=_DECIDING_IF_SET, exclude_defaults=True),
    }
    if kernel is None:
        request["estimate"] = ESTIMATE_VERSION
        if restorer.trust is not None:
            request["trust_net"] = restorer.trust.digest
    return RestoreContext(settings, restorer, kernel, x0, storage.digest_of(request))


def load_kernel(given: str) -> np.ndarray:
    """Load the only kernel of a file, or one of a bank by `bank:URI#INDEX`. Raises BadRequestError."""
    if given.startswith(_BANK):
        uri, _, index = given.removeprefix(_BANK).rpartition("#")
        if not uri or not (index.isascii() and index.isdecimal()):
            raise BadRequestError(f"--kernel {given}: write bank:URI#INDEX")
        bank = KernelBank.open(uri)
        if int(index) >= len(bank):
            raise BadRequestError(f"--kernel {given}: the bank holds kernels 0 to {len(bank) - 1}")
        return np.array(bank.kernels[int(index)])
    kernels = load_kernels(given)
    if len(kernels) != 1:
        raise BadRequestError(f"{given}: holds {len(kernels)} kernels; give a file with one")
    return np.asarray(kernels[0])


def restore_job(job: RestoreJob, context: RestoreContext, on_step: Listener | None = None) -> RestoreResult:
    """Restore one file and write its outputs; an error in the file becomes its outcome."""
    try:
        if (problem := job.name_problem()) is not None:
            return RestoreResult(job.source.name, "", problem)
        started = time.perf_counter()
        data = read_source(job.source)
        photograph = decode_photograph(data)
        read = time.perf_counter() - started
        settings = context.settings
        bits = refuse_result(job, photograph.pixels, settings)
        restored = context.restorer.restore(
            photograph.pixels,
            settings.scale,
            settings.sigma,
            context.kernel,
            x0=context.x0,
            self_ensemble=settings.self_ensemble,
            max_memory=settings.max_memory,
            file_error=photograph.file_error,
            strength=settings.strength,
            kernel_field=settings.kernel_field,
            trust=settings.trust,
            on_step=on_step,
        )
        pixels = to_depth(restored.image, bits)
        metadata, lost = carried(photograph.metadata, pixels, job.kind, strip=settings.strip_metadata)
        as_before = settings.format == "same" and settings.quality is None
        encoded = encode_photograph(
            Photograph(pixels, job.kind, metadata, photograph.jpeg if as_before else None),
            settings.quality or DEFAULT_QUALITY,
        )
        found = [*photograph.notes, *lost, *diagnose(photograph.pixels, restored)]
        if restored.field is None and restored.spread is not None and restored.spread > APART:
            found.append("--kernel-field estimates a kernel for every place")
        about = _about(job, context, restored, data, found) | {
            "seconds": {
                "read": round(read, 3),
                "estimate": round(restored.estimate_seconds, 3),
                "restore": round(restored.seconds - restored.estimate_seconds, 3),
            }
        }
        _write(job, photograph, restored, encoded, about)
    except (BadImageError, BadRequestError) as error:
        return RestoreResult(job.source.name, "", str(error))
    except OSError as error:
        if error.errno not in _OF_NAMES:
            raise
        return RestoreResult(job.source.name, "", f"{error.filename or job.result}: {error.strerror}; use --name")
    except (MemoryError, torch.OutOfMemoryError) as error:
        return RestoreResult(job.source.name, "", f"out of memory ({type(error).__name__}); lower --max-memory")
    return RestoreResult(job.source.name, job.result, "; ".join([_note(photograph.pixels, restored), *found]))


def refuse_result(job: RestoreJob, pixels: np.ndarray, settings: RestoreSettings) -> np.dtype:
    """Check that a job's format can hold the restored image; return its pixel type. Raises BadImageError."""
    bits = {"same": pixels.dtype, "8": np.dtype(np.uint8), "16": np.dtype(np.uint16)}[settings.depth]
    height, width = (side * settings.scale for side in pixels.shape[:2])
    refuse_format(job.kind, (height, width), alpha=has_alpha(pixels), dtype=bits)
    return bits


def _about(
    job: RestoreJob, context: RestoreContext, restored: Restored, data: bytes, found: list[str]
) -> dict[str, Any]:
    settings = context.settings
    return {
        "input": job.source.name,
        "input_sha256": hashlib.sha256(data).hexdigest(),
        "request": context.request,
        "model": context.restorer.uri,
        "weights_sha256": context.restorer.digest,
        "precision": context.restorer.precision,
        **restored.facts(),
        "sigma_from": "estimated" if settings.sigma == "auto" else "given",
        "kernel": settings.kernel or "estimated",
        "kernel_field": None if restored.field is None else described(restored.field),
        "x0": settings.x0,
        "self_ensemble": settings.self_ensemble,
        "warnings": found,
    }


def _write(job: RestoreJob, photograph: Photograph, restored: Restored, encoded: bytes, about: dict[str, Any]) -> None:
    """Write the report first, which marks the other files as ours, and the restored image last.

    An old result is deleted before, so that it never exists next to the report of another.
    """
    if storage.exists(job.result):
        storage.remove_file(job.result)
    values = io.BytesIO()
    np.save(values, restored.kernel)
    peak = np.round(restored.kernel.clip(0) / restored.kernel.max() * 65535).astype(np.uint16)
    storage.write_bytes(job.report, (json.dumps(about, indent=1) + "\n").encode())
    storage.write_bytes(f"{job.target}-kernel.npy", values.getvalue())
    storage.write_bytes(f"{job.target}-kernel.png", encode_png(peak))
    if restored.field is not None:
        storage.write_bytes(f"{job.target}-field.png", encode_png(mosaic(restored)))
    storage.write_bytes(f"{job.target}-compare.png", encode_png(comparison(photograph.pixels, restored)))
    storage.write_bytes(job.result, encoded)


def _note(image: np.ndarray, restored: Restored) -> str:
    height, width = restored.image.shape[:2]
    windows = f" in {restored.windows} windows" if restored.windows > 1 else ""
    return (
        f"{image.shape[1]} x {image.shape[0]} -> {width} x {height}{windows}, sigma {restored.sigma * 255:.2f}/255, "
        f"residual {restored.residual * 255:.2f}/255, {restored.seconds:.1f} s"
    )
