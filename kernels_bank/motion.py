"""Motion kernels: random camera shake during an exposure.

The hand moves the image with a velocity v(t). It is driven by a force f(t), a mean-reverting random walk
(Ornstein-Uhlenbeck, time constant tau). v follows f with inertia (time constant mu), both turn steadily (rotation), and
at random moments v jumps (impulsive shakes). All times are in exposures: a tau of 3 is a short exposure with one smooth
stroke, a tau of 0.05 a long one with a tangle.

    f' = -f / tau + sqrt(2 / tau) * white noise          v' = (f - v) / mu + jumps          x' = v

The kernel is the distribution of light: the path, narrowed across a random axis, centred and scaled to its extent, is
splatted bilinearly at equal times, so slow stretches are bright, and then softened by a pixel-sized tap.

All kernels of a call advance together, in one Python loop over time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels_bank import portable
from kernels_bank.runtime.errors import BadRequestError

# Moments of the exposure at which light is sampled: a 60-pixel path has three per pixel.
_STEPS = 192
# Number of kernels splatted together, so that they stay in the cache.
_BLOCK = 128


@dataclass(frozen=True)
class Shake:
    """Hold the distributions of `sample_motion`; times are in exposures.

    The defaults cover the measured kernels of Levin et al. 2009.
    """

    memory: tuple[float, float] = (0.02, 10.0)  # tau, log-uniform
    inertia: tuple[float, float] = (0.02, 1.6)  # mu, log-uniform
    turn: float = 3.3  # standard deviation of the turn, radians per exposure
    shaken: float = 0.6  # share of paths with impulsive shakes
    shakes: float = 6.0  # largest expected number of jumps in an exposure
    shake: float = 1.7  # standard deviation of a jump, relative to the typical velocity
    narrowing: float = 3.0  # largest factor by which a path is narrowed across a random axis, log-uniform
    softness: float = 0.25  # largest weight of each neighbour in the softening tap


def sample_motion(
    n: int,
    size: int = 21,
    *,
    rng: np.random.Generator,
    extent: tuple[float, float] = (2.0, 26.0),
    shake: Shake | None = None,
) -> np.ndarray:
    """Sample random motion kernels, centre of mass on the middle pixel (to float32 rounding).

    Args:
        n: number of kernels.
        size: side in pixels, odd, at least 7.
        rng: source of the draws.
        extent: range of the longer side of the path's bounding box, in pixels; longer ones are more likely.
            A path that would leave the window is scaled to the largest that fits.
        shake: distributions of the path; the default suits hand-held cameras.

    Returns:
        (n, size, size) float32, >= 0, sum 1.

    Raises:
        BadRequestError: the size is even or below 7, the count negative, or a range out of order.
    """
    return draw_motion(n, size, rng=rng, extent=extent, shake=shake)[0]


def draw_motion(
    n: int,
    size: int,
    *,
    rng: np.random.Generator,
    extent: tuple[float, float],
    shake: Shake | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the kernels (n, size, size) of `sample_motion`, with their extents (n,) in pixels and memories (n,).

    Args:
        n: number of kernels.
        size: side in pixels, odd, at least 7.
        rng: source of the draws.
        extent: range of the longer side of the path, in pixels.
        shake: distributions of the path; None for hand-held cameras.
    """
    if size < 7 or size % 2 == 0:
        raise BadRequestError(f"motion kernels of side {size}: choose an odd side of at least 7")
    if n < 0 or not 0 < extent[0] <= extent[1]:
        raise BadRequestError(f"{n} motion kernels of extent {extent}: need n >= 0 and 0 < low <= high")
    law = shake or Shake()
    memory = portable.log_uniform(rng.random(n), *law.memory)
    x, y = _paths(memory, law, rng)
    factor = portable.log_uniform(rng.random(n), 1.0, law.narrowing)
    across = rng.standard_normal((2, n))
    wanted = extent[0] + (extent[1] - extent[0]) * np.sqrt(rng.random(n))
    uniform = rng.random(n)
    softness = law.softness * uniform * uniform
    kernels, spans = np.empty((n, size, size), dtype=np.float32), np.empty(n)
    for start in range(0, n, _BLOCK):
        some = slice(start, start + _BLOCK)
        px, py = _narrowed(x[:, some], y[:, some], factor[some], across[:, some])
        px, py, spans[some] = _fitted(px, py, wanted[some], size)
        block = _softened(_splatted(px, py, size), softness[some])
        kernels[some] = block / block.reshape(len(block), size * size).sum(axis=1)[:, None, None]
    return kernels, spans, memory


def _paths(memory: np.ndarray, law: Shake, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Walk the paths; return positions x, y (steps, n) in any unit. `memory` is tau of each column in exposures."""
    n = len(memory)
    forget = np.minimum(1 / (memory * _STEPS), 1.0)
    follow = np.minimum(1 / (portable.log_uniform(rng.random(n), *law.inertia) * _STEPS), 1.0)
    push = np.sqrt(2 * forget)
    # Half the turn per step; cosine and sine by the tangent half-angle formulas, which need no trigonometry.
    half_turn = rng.standard_normal(n) * law.turn / (2 * _STEPS)
    cosine = (1 - half_turn * half_turn) / (1 + half_turn * half_turn)
    sine = 2 * half_turn / (1 + half_turn * half_turn)
    jumps = rng.random(n) * law.shakes / _STEPS * (rng.random(n) < law.shaken)

    # (axis, force and velocity, n), so that one rotation turns both.
    state = np.empty((2, 2, n))
    state[:] = rng.standard_normal((2, 1, n))
    force, velocity = state[:, 0], state[:, 1]
    path = np.empty((_STEPS, 2, n))
    position: np.ndarray | float = 0.0
    noise, change, turned = np.empty((2, n)), np.empty((2, n)), np.empty((2, n))
    for step in range(_STEPS):
        rng.standard_normal(out=noise)
        noise *= push
        noise -= np.multiply(forget, force, out=change)
        force += noise
        np.subtract(force, velocity, out=change)
        change *= follow
        velocity += change
        jumping = np.flatnonzero(rng.random(n) < jumps)
        if len(jumping):
            velocity[:, jumping] += law.shake * rng.standard_normal((2, len(jumping)))
        np.multiply(cosine, state[0], out=turned)
        turned -= np.multiply(sine, state[1], out=change)
        state[1] *= cosine
        state[1] += np.multiply(sine, state[0], out=change)
        state[0] = turned
        position = np.add(position, velocity, out=path[step])
    return path[:, 0], path[:, 1]


def _narrowed(x: np.ndarray, y: np.ndarray, factor: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide the paths by `factor` across axes of `direction` (2, n), of any length."""
    ux, uy = direction
    norm = np.sqrt(ux * ux + uy * uy)
    ux, uy = ux / norm, uy / norm
    along, across = x * ux + y * uy, (y * ux - x * uy) / factor
    return along * ux - across * uy, along * uy + across * ux


def _fitted(x: np.ndarray, y: np.ndarray, extent: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixel coordinates of the paths, with their mean in the middle of the window, and their extents."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    span = np.maximum(x.max(axis=0) - x.min(axis=0), y.max(axis=0) - y.min(axis=0))
    reach = np.maximum(np.abs(x).max(axis=0), np.abs(y).max(axis=0))
    # A margin of one pixel stays free, so that bilinear splatting and the softening tap lose and shift nothing.
    middle = size // 2
    scale = np.minimum(extent / span, (middle - 1) * (1 - 1e-9) / reach)
    return x * scale + middle, y * scale + middle, span * scale


def _splatted(x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """Splat positions (steps, n) to (n, size, size): each adds 1 to the four pixels around it, bilinearly."""
    n = x.shape[1]
    left, top = x.astype(np.int64), y.astype(np.int64)
    right, below = x - left, y - top
    corner = np.arange(n) * (size * size) + top * size + left
    pixels, light = np.empty((4, *corner.shape), dtype=np.int64), np.empty((4, *corner.shape))
    for i, (offset, across, down) in enumerate(
        ((0, 1 - right, 1 - below), (1, right, 1 - below), (size, 1 - right, below), (size + 1, right, below))
    ):
        np.add(corner, offset, out=pixels[i])
        np.multiply(across, down, out=light[i])
    return np.bincount(pixels.ravel(), light.ravel(), minlength=n * size * size).reshape(n, size, size)


def _softened(kernels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Blur each kernel by (w, 1 - 2w, w) along both axes; its border pixels must be empty."""
    n, size, _ = kernels.shape
    weight = weight[:, None]
    soft = kernels.reshape(n, size * size)
    # As one line of pixels: steps to the left or right carry only zeros over the end of a row.
    for step in (size, 1):
        tap = weight * soft
        soft = soft * (1 - 2 * weight)
        soft[:, step:] += tap[:, :-step]
        soft[:, :-step] += tap[:, step:]
    return soft.reshape(n, size, size)
