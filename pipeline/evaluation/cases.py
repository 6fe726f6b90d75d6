"""One case of the comparison: an image, a kernel, a scale and a noise level, restored by every method.

The functions are pure, so the numbers are the same on any worker.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.camera import JpegPass, Subsampling, sensor_noise, through_jpeg
from pipeline.degrade import degrade, quantize
from pipeline.evaluation.baselines import bicubic, bicubic_centred, bicubic_unaligned
from pipeline.evaluation.dan_degradation import degrade_dan
from pipeline.evaluation.memory import PeakMemory
from pipeline.evaluation.metrics import compare_kernels, psnr, psnr_shifted, ssim
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.row import Measures
from pipeline.images.jpeg_level import jpeg_error, quantisation_tables
from pipeline.inference import Restorer
from pipeline.inference.boundary import periodic_extension
from pipeline.inference.estimate import blur_of
from pipeline.inference.noise import noise_level
from pipeline.inference.trust import Evidence, features, mix
from pipeline.model import BlindOutput
from pipeline.seeds import rng

_CHROMA: Subsampling = "4:2:0"
BICUBIC, UNALIGNED, NONBLIND, BLIND = "bicubic", "bicubic-unaligned", "nonblind", "blind"


@dataclass(frozen=True)
class Estimate:
    """Hold the result of one method for an LR image."""

    sr: np.ndarray  # (H, W, 3) float32 in [0, 1], not clipped
    kernel: np.ndarray | None  # (k, k) used for the restoration
    rounds: list[np.ndarray]  # the image after each kernel estimate, for blind methods
    seconds: float = 0.0
    memory_mib: float | None = None  # peak above the memory that the process held before


def crop_hr(image: np.ndarray, scale: int, protocol: Protocol) -> np.ndarray:
    """Crop an image (H, W, 3) to the compared part: the protocol's crop, then a multiple of its size multiple."""
    if protocol.crop is not None:
        top, left = (max(0, (side - protocol.crop) // 2) for side in image.shape[:2])
        image = image[top : top + protocol.crop, left : left + protocol.crop]
    multiple = protocol.size_multiple(scale)
    height, width = (side - side % multiple for side in image.shape[:2])
    return np.ascontiguousarray(image[:height, :width])


def make_lr(hr: np.ndarray, kernel: np.ndarray, scale: int, sigma: float, protocol: Protocol) -> np.ndarray:
    """Make the LR image (H/s, W/s, 3) float32 of an HR image: blur, shrink, quantise, add noise.

    A camera's noise comes before the quantisation, and JPEG last.

    The computation is in float64, so that flooring to 8 bit, as in the published script, gives the same integers on
    every machine.

    Args:
        hr: (H, W, 3) uint8.
        kernel: (k, k), in the protocol's own sense.
        scale: s.
        sigma: noise level on the [0, 1] scale.
        protocol: protocol of the evaluation.
    """
    if protocol.degradation == "camera":
        return _camera_lr(hr, kernel, scale, sigma, protocol)
    if protocol.degradation == "dan":
        small = torch.from_numpy(degrade_dan(hr / 255, kernel, scale))
    else:
        image = torch.from_numpy(hr).double().permute(2, 0, 1)[None] / 255
        small = degrade(image, torch.from_numpy(kernel).double()[None], scale)[0].permute(1, 2, 0)
    lr = quantize(small, protocol.lr_quantize).numpy()
    if sigma > 0:
        noise = rng(protocol.noise_seed, epoch=0, key=f"{lr.shape}", purpose="evaluation-noise")
        lr = lr + sigma * noise.standard_normal(lr.shape)
    return lr.astype(np.float32)


def _camera_lr(hr: np.ndarray, kernel: np.ndarray, scale: int, sigma: float, protocol: Protocol) -> np.ndarray:
    composite = protocol.assumed_kernel(kernel, scale)
    around = -(-composite.shape[0] // scale)  # LR pixels of mirrored scene on every side
    scene = np.pad(hr / 255, ((around * scale,) * 2, (around * scale,) * 2, (0, 0)), mode="symmetric")
    image = torch.from_numpy(scene).permute(2, 0, 1)[None]
    clean = degrade(image, torch.from_numpy(composite).double()[None], scale)[0, :, around:-around, around:-around]
    lr = clean.numpy().astype(np.float32)
    random = rng(protocol.noise_seed, epoch=0, key=f"{lr.shape}", purpose="evaluation-noise")
    lr += sensor_noise(lr, sigma, random, shot=False)
    if protocol.jpeg:
        lr = through_jpeg(lr, (JpegPass(protocol.jpeg, _CHROMA),))
    return np.ascontiguousarray(quantize(torch.from_numpy(lr), protocol.lr_quantize).permute(1, 2, 0).numpy())


def assumed_sigma(lr: np.ndarray, sigma: float, protocol: Protocol) -> float:
    """Return the noise level for models: the true level, or for a camera's image the one estimated from its file.

    Args:
        lr: (h, w, 3) float32.
        sigma: true noise level.
        protocol: protocol of the evaluation.
    """
    if protocol.degradation != "camera":
        return sigma
    return noise_level(lr, file_error(lr, protocol))


def file_error(lr: np.ndarray, protocol: Protocol) -> float:
    """Return the error of a JPEG according to its tables, [0, 1] scale; 0 in a protocol without JPEG.

    Args:
        lr: (h, w, 3) float32.
        protocol: protocol of the evaluation.
    """
    if not protocol.jpeg:
        return 0.0
    return jpeg_error((lr * 255).round().astype(np.uint8), quantisation_tables(protocol.jpeg), 2)


def baselines(protocol: Protocol) -> dict[str, Callable[[np.ndarray, int], np.ndarray]]:
    """Return the upsampling methods without a model that fit a protocol's grid, by name."""
    if protocol.degradation != "usrnet":
        return {BICUBIC: bicubic_centred}
    return {BICUBIC: bicubic, UNALIGNED: bicubic_unaligned}


def restore_all(
    lr: np.ndarray, kernel: np.ndarray, scale: int, sigma: float, models: Mapping[str, Restorer], protocol: Protocol
) -> dict[str, Estimate]:
    """Restore an LR image (h, w, 3) by every method.

    Args:
        lr: float32.
        kernel: (k, k) true kernel, as `Protocol.assumed_kernel`; only `nonblind` and non-blind models use it.
        scale: scale of the degradation.
        sigma: true noise level, passed to all models by protocols without cameras.
        models: models by method name: `blind`, `nonblind`, or a model's URI.
        protocol: protocol, which determines the baselines and whether the image must first be made periodic.
    """
    mirrored = protocol.degradation != "usrnet"
    sigma = assumed_sigma(lr, sigma, protocol)
    height, width = scale * lr.shape[0], scale * lr.shape[1]

    def resized(enlarge: Callable[[np.ndarray, int], np.ndarray]) -> Estimate:
        return Estimate(enlarge(lr, scale), None, [])

    def restored(model: Restorer, *, blind: bool) -> Estimate:
        placed = model.tensor(periodic_extension(lr, -(-kernel.shape[0] // scale)) if mirrored else lr)
        if blind:
            out = model.blind(placed, scale, sigma, observed=model.tensor(lr), grid=protocol.grid)
            used, rounds = out.kernel[0].cpu().numpy(), [_cut(r.sr, height, width) for r in out.rounds]
            return Estimate(_believed(model, out, placed, lr, sigma, protocol), used, rounds)
        known = torch.as_tensor(kernel, dtype=torch.float32, device=model.device)[None]
        return Estimate(_cut(model.nonblind(placed, known, scale, sigma), height, width), kernel, [])

    cpu = torch.device("cpu")
    found = {name: _measured(cpu, functools.partial(resized, enlarge)) for name, enlarge in baselines(protocol).items()}
    for name, model in models.items():
        blind = model.is_blind and name != NONBLIND
        found[name] = _measured(model.device, functools.partial(restored, model, blind=blind))
    return found


def _believed(
    model: Restorer, out: BlindOutput, placed: torch.Tensor, lr: np.ndarray, sigma: float, protocol: Protocol
) -> np.ndarray:
    """Mix the blind restoration of an LR image (h, w, 3) by the model's trust; `placed` is the part that it saw."""
    scale, (height, width) = out.sr.shape[-1] // placed.shape[-1], lr.shape[:2]
    sr, blur = _cut(out.sr, scale * height, scale * width), blur_of(out)
    if model.trust is None or blur is None:
        return sr
    left = (degrade(out.sr.clamp(0, 1), out.kernel, scale) - placed)[0, :, :height, :width]
    # No picture explains the border, which was blurred with pixels outside.
    around = 0 if protocol.degradation == "usrnet" else out.kernel.shape[-1] // (2 * scale) + 1
    rows, columns = (slice(n, -n or None) for n in (min(around, side // 4) for side in (height, width)))
    image = sr.clip(0, 1)
    seen = Evidence(
        scale=scale,
        level=sigma,
        file_error=file_error(lr, protocol),
        residual=float(left[:, rows, columns].square().mean().sqrt()),
        width=blur.width,
        shares=blur.shares,
        refined=bool(out.kernel_round[0]),
        grid=protocol.grid,
    )
    trust = model.trust(features(lr, image, seen))
    mix(lr, image, trust, scale, protocol.grid)
    return sr if trust == 1 else image


def _measured(device: torch.device, work: Callable[[], Estimate]) -> Estimate:
    """Return the estimate with its seconds and memory."""
    with PeakMemory(device) as used:
        started = time.perf_counter()
        estimate = work()
        seconds = time.perf_counter() - started
    return dataclasses.replace(estimate, seconds=seconds, memory_mib=used.mib)


def measure(
    estimate: Estimate, hr: np.ndarray, lr: np.ndarray, kernel: np.ndarray, scale: int, protocol: Protocol
) -> Measures:
    """Measure one estimate by all metrics; a metric that does not apply to its method is None.

    Args:
        estimate: estimate of the HR image.
        hr: (H, W, 3) uint8, the truth.
        lr: (h, w, 3) float32.
        kernel: (k, k) true kernel.
        scale: s.
        protocol: protocol of the evaluation.
    """
    border = protocol.border_pixels(scale)

    def compared(sr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if protocol.round_output:
            return (sr.clip(0, 1) * 255).round().astype(np.uint8), hr
        return sr, hr.astype(np.float32) / 255

    image, reference = compared(estimate.sr)
    shifted = psnr_shifted(image, reference, border=border)
    used = estimate.kernel
    error = compare_kernels(used, kernel) if estimate.rounds and used is not None else None
    return Measures(
        psnr_rgb=psnr(image, reference, border=border),
        psnr_y=psnr(image, reference, border=border, channel="y"),
        ssim_rgb=ssim(image, reference, border=border),
        ssim_y=ssim(image, reference, border=border, channel="y"),
        psnr_rgb_shifted=shifted.psnr,
        kernel_psnr=None if error is None else error.psnr,
        kernel_correlation=None if error is None else error.correlation,
        lr_residual=None if used is None else _residual(estimate.sr, used, lr, scale, protocol),
        psnr_rounds=[psnr(*compared(sr), border=border) for sr in estimate.rounds],
        kernel_estimate=None if error is None or used is None else used.astype(np.float32).ravel().tolist(),
        seconds=estimate.seconds,
        memory_mib=estimate.memory_mib,
    )


def _residual(sr: np.ndarray, kernel: np.ndarray, lr: np.ndarray, scale: int, protocol: Protocol) -> float:
    """Return the RMS of (sr (*) kernel)down - lr, without the blurred edges unless the LR image is periodic."""
    image = torch.from_numpy(np.ascontiguousarray(sr.transpose(2, 0, 1)))[None]
    explained = degrade(image, torch.as_tensor(kernel, dtype=torch.float32)[None], scale)[0].permute(1, 2, 0).numpy()
    edge = -(-kernel.shape[0] // (2 * scale)) if protocol.degradation != "usrnet" else 0
    inside = slice(edge, -edge or None)
    return float(np.sqrt(np.mean((explained - lr)[inside, inside] ** 2)))


def _cut(sr: torch.Tensor, height: int, width: int) -> np.ndarray:
    return np.asarray(sr[0, :, :height, :width].permute(1, 2, 0).cpu().numpy())
