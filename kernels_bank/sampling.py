"""Every kernel as a pure function of (bank seed, family, index).

Kernels are drawn in aligned chunks of fixed length, each from its own counter-based Philox stream keyed by (seed,
family, chunk). A sub-range is cut from whole chunks, so a kernel has the same bits alone or among its neighbours.
"""

from __future__ import annotations

import hashlib

import numpy as np

from kernels_bank.defocus import disk_kernels, draw_disk
from kernels_bank.gaussian import draw_gaussian, gaussian_kernels, perturb
from kernels_bank.motion import Shake, draw_motion
from kernels_bank.reduction import reduce_kernels, reduction_line
from kernels_bank.spec import COMPOSITES, Family, KernelBankSpec

CHUNK = 1024

Drawn = tuple[np.ndarray, dict[str, np.ndarray]]


def draw_range(spec: KernelBankSpec, family: Family, start: int, stop: int) -> Drawn:
    """Draw the kernels `start` ... `stop` - 1 of a family.

    Args:
        spec: spec of the bank.
        family: family of the kernels.
        start: index of the first kernel.
        stop: index after the last kernel.

    Returns:
        (stop - start, size, size) float32, and the drawn parameters by name, each (stop - start,) float32.
    """
    chunks = [draw_chunk(spec, family, chunk) for chunk in range(start // CHUNK, -(-stop // CHUNK))]
    inside = slice(start % CHUNK, start % CHUNK + stop - start)
    kernels = np.concatenate([kernels for kernels, _ in chunks])[inside]
    return kernels, {name: np.concatenate([drawn[name] for _, drawn in chunks])[inside] for name in chunks[0][1]}


def draw_chunk(spec: KernelBankSpec, family: Family, chunk: int) -> Drawn:
    """Draw all CHUNK kernels of one chunk, and their parameters."""
    key = hashlib.blake2b(f"{spec.seed}/{family}/{chunk}".encode(), digest_size=16).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
    match family:
        case "gaussian" | "gaussian_reduced":
            sigmas, axis = draw_gaussian(
                CHUNK, rng=rng, sigma=spec.sigma, isotropic=spec.isotropic, sigma_law=spec.sigma_law
            )
            kernels = perturb(gaussian_kernels(sigmas, axis, spec.size), spec.noise, rng=rng)
            angle = np.degrees(np.arctan2(axis[:, 1], axis[:, 0])) % 180
            drawn = {"sigma_along": sigmas[:, 0], "sigma_across": sigmas[:, 1], "angle": angle}
        case "motion" | "motion_reduced":
            shake = Shake(memory=spec.memory, turn=spec.turn, narrowing=spec.narrowing)
            kernels, extent, memory = draw_motion(CHUNK, spec.size, rng=rng, extent=spec.extent, shake=shake)
            drawn = {"extent": extent, "memory": memory}
        case "disk":
            radius = draw_disk(CHUNK, spec.size, rng=rng, radius=spec.disk_radius)
            kernels, drawn = disk_kernels(radius, spec.size), {"radius": radius}
        case "delta" | "reduction":
            kernels, drawn = np.zeros((CHUNK, spec.size, spec.size), dtype=np.float32), {}
            kernels[:, spec.size // 2, spec.size // 2] = 1
    if family in COMPOSITES:
        which = np.arange(chunk * CHUNK, (chunk + 1) * CHUNK) % len(spec.reductions)
        lines = [reduction_line(name, spec.scale, spec.grid) for name in spec.reductions]
        kernels = reduce_kernels(kernels, which, lines)
    return kernels, {name: values.astype(np.float32) for name, values in drawn.items()}
