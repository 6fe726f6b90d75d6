"""Fit the kernel prior, the net that corrects kernel steps, and put it into copies of model folders.

Crops of photographs are degraded, and their kernels estimated as in a blind restoration. A model that estimates
reductions gets pictures as cameras and web sites store them, any other model only blur and decimation. The maps of each
step are stored in parts in a folder, which a second call reuses. The net learns from these small maps alone. If a model
already has such a net, it takes part in some steps at random, so a second call learns from what the net meets in use.

python -m tools.fit_kernel_prior --models shipped:blind-sr shipped:blind-sr-camera --photographs BSDS400 \
    --found DIR --output DIR
"""

from __future__ import annotations

import argparse
import io
import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kernels_bank import sample_disk, sample_gaussian, sample_motion
from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.progress import Progress
from pipeline.catalogue import locate, open_network
from pipeline.config import DataConfig, RunConfig
from pipeline.data.samples import degrade_draws, draw
from pipeline.images.decode import decode_image
from pipeline.inference.noise import noise_level
from pipeline.inference.precision import convolving
from pipeline.model import BlindUSRNet
from pipeline.model.edge_start import edge_kernel
from pipeline.model.fourier import transfer_function
from pipeline.model.kernel_prior import KernelPrior
from pipeline.model.reducer import Reducer
from pipeline.model_config import ModelConfig
from pipeline.model_folder import read_manifest
from pipeline.seeds import rng, torch_seed
from pipeline.yaml_file import read_yaml
from tools.model_copy import write_copy

PART = 100  # photographs
_CAMERA = str(Path(__file__).parents[1] / "jobs/configs/shipped-camera-spectral.yaml")  # has the cameras' distributions
_SIDES, _SIDE_SHARES = (144, 192, 240, 312), (0.2, 0.3, 0.3, 0.2)  # HR pixels
_SCALE_SHARES = {2: 0.4, 3: 0.3, 4: 0.3}
_SMALLEST_AT_4 = 240  # HR pixels; a smaller crop shows no kernel of 25 x 25
_SHRUNK, _SMALLEST = 0.4, 0.6  # share of photographs that are first reduced for sharpness, and the smallest factor
_DRAWS = (sample_motion, sample_gaussian, sample_disk)
_DRAW_SHARES = (0.8, 0.13, 0.07)  # with others, the net learns what it must leave alone
_MOST_SMALL = 20  # most crops that do not fit for each crop that does
_NOISE_FREE, _MOST_NOISE = 0.5, 0.03  # without cameras
_FROM_EDGES = 0.75  # share of starts from edges, as in models with such a net; other starts are as useful for training
_CORRECTING = (0.0, 0.35, 0.7)  # shares of steps that an earlier net corrects; one share is drawn per photograph

_BATCH, _RATE, _WARM_UP, _DECAY = 32, 1.5e-3, 100, 0.999
_GRID, _FINER = 64, 4  # frequencies per side; shifts are found to a quarter of a pixel
_WITHOUT_NOISE, _BY_NOISE = 5e-3, 0.25  # regularisation of the inverse filter; the second times sigma
_BEYOND = {2: 1.0, 3: 0.25, 4: 0.25}  # weight of frequencies that the LR image does not hold
_FLOOR = {2: 1e-3, 3: 0.02, 4: 0.05}  # share of a picture's power that is lost anyway


class Steps(NamedTuple):
    """Hold the kernel steps of n photographs."""

    maps: Tensor  # (n, steps, 4, k, k) float16 of `kernel_maps`
    kernel: Tensor  # (n, k, k) true ones
    sigma: Tensor  # (n,) assumed noise levels
    scale: Tensor  # (n,)


def main() -> None:
    """Estimate missing parts, fit, and write the model folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True, nargs="+", help="blind ones with kernel steps")
    parser.add_argument("--photographs", type=Path, required=True, help="folder of sharp pictures")
    parser.add_argument("--found", type=Path, required=True, help="folder of what the steps find")
    parser.add_argument("--parts", type=int, default=40, help=f"of {PART} photographs")
    parser.add_argument("--fit-steps", type=int, default=15_000, help=f"of {_BATCH} kernels")
    parser.add_argument("--output", type=Path, required=True, help="folder of the copies: one of each model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    places = [locate(uri) for uri in arguments.models]
    networks = [net for place in places if isinstance(net := open_network(place)[0], BlindUSRNet)]
    kinds = {(net.kernel_size, net.config.kernel.steps) for net in networks}
    if len(networks) < len(places) or len(kinds) > 1 or not networks[0].config.kernel.steps:
        parser.error("--models: blind ones with kernels of one size and equally many kernel steps are needed")
    photographs = sorted(p for p in arguments.photographs.iterdir() if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if not photographs:
        parser.error(f"--photographs {arguments.photographs}: holds no .jpg or .png")
    data = RunConfig.model_validate(read_yaml(_CAMERA, _CAMERA)).data
    arguments.found.mkdir(parents=True, exist_ok=True)
    files = [arguments.found / f"part-{number:03d}.npz" for number in range(arguments.parts)]
    missing = [(number, file) for number, file in enumerate(files) if not file.exists()]
    with Progress("kernel steps", total=len(missing) * PART, unit="photograph") as bar:
        for number, file in missing:
            write_part(networks, data, photographs, file, number, bar)
    steps = Steps(*(torch.cat(parts) for parts in zip(*map(read_part, files), strict=True)))
    prior = fit(steps, arguments.fit_steps)
    for number, place in enumerate(places):
        name = Path(place.folder).name
        target = arguments.output / (name if [Path(p.folder).name for p in places].count(name) == 1 else f"{number}")
        write_prior(prior, Path(place.folder), target)
        print(f"{target}: {place.name} with a kernel prior fitted on {len(steps.kernel)} photographs")


def write_part(
    networks: list[BlindUSRNet], data: DataConfig, photographs: list[Path], file: Path, number: int, bar: Progress
) -> None:
    """Estimate the kernels of one part's photographs and store the maps of each step.

    Args:
        networks: networks with the restorers, one per photograph, and possibly priors.
        data: distributions of cameras, for networks that estimate reductions.
        photographs: sharp photographs.
        file: file to write, atomically.
        number: number of the part, which determines crops, kernels and all other draws.
        bar: progress bar.
    """
    random, choice = (rng(0, epoch=number, key=key, purpose="prior") for key in ("steps", "corrected"))
    rows, small = [], 0
    while len(rows) < PART:
        network = networks[random.integers(len(networks))]
        tile = decode_image(photographs[random.integers(len(photographs))].read_bytes())
        shares = np.array([share * (scale in network.scales) for scale, share in _SCALE_SHARES.items()])
        scale = int(random.choice(list(_SCALE_SHARES), p=shares / shares.sum()))
        side = max(int(random.choice(_SIDES, p=_SIDE_SHARES)), _SMALLEST_AT_4 if scale == 4 else 0)
        if random.random() < _SHRUNK:
            factor = random.uniform(_SMALLEST, 1)
            tile = cv2.resize(tile, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        kernel = _DRAWS[random.choice(len(_DRAWS), p=_DRAW_SHARES)](1, network.kernel_size, rng=random)
        if min(tile.shape[:2]) < side:
            small += 1
            if small > _MOST_SMALL * PART:
                raise BadRequestError(f"{photographs[0].parent}: nearly all photographs are smaller than {side} pixels")
            continue
        cameras = network.config.kernel.reductions
        laws = {"camera": data.camera} if cameras else {"camera": None, "sigma": (0.0, _MOST_NOISE)}
        patch = data.model_copy(update={"patch": side, "noise_free": _NOISE_FREE, **laws})
        drawn = draw(tile, f"{number}-{len(rows)}", 0, epoch=0, seed=0, data=patch, bank=kernel)
        degraded = degrade_draws([drawn], scale, "round")
        lr = torch.from_numpy(degraded.lr)
        told = float(degraded.sigma[0]) if cameras else max(noise_level(degraded.lr[0].transpose(1, 2, 0), 0.0), 1e-3)
        with torch.inference_mode(), convolving("auto", lr.device):
            maps = steps_of(network, lr, scale, told, choice)
        rows.append((maps.half().numpy(), drawn.kernel, np.float32(told), np.int64(scale)))
        bar.advance()
    packed = io.BytesIO()
    np.savez(packed, **dict(zip(Steps._fields, (np.stack(c) for c in zip(*rows, strict=True)), strict=True)))
    storage.write_bytes(str(file), packed.getvalue())


def steps_of(network: BlindUSRNet, lr: Tensor, scale: int, sigma: float, random: np.random.Generator) -> Tensor:
    """Return the maps (steps, 4, k, k) of every kernel step of an LR image (1, 3, h, w).

    Args:
        network: network that restores.
        lr: LR image in [0, 1], periodic.
        scale: s.
        sigma: noise level passed to it.
        random: source of the start, and of the steps that an earlier net corrects.
    """
    seen: list[Tensor] = []
    share, from_edges = random.choice(_CORRECTING), random.random() < _FROM_EDGES

    def prior(maps: Tensor, level: Tensor, progress: float, scale: int) -> Tensor:
        seen.append(maps[0])
        if random.random() >= share or network.prior is None:
            return maps[:, 0]
        corrected: Tensor = network.prior(maps, level, progress, scale)
        return corrected

    level, first = torch.tensor([sigma]), network.initial(lr, scale, sigma)
    start = first.blur if first.start is None else first.start
    if from_edges:
        start = edge_kernel(lr, network.kernel_size, scale, level)
    every = range(network.config.kernel.steps)
    network.refine(lr, start, scale, level, Reducer(first.shares, scale, "corner"), prior=prior, corrected=every)
    return torch.stack(seen)


def read_part(file: Path) -> Steps:
    """Read a part written by `write_part`."""
    with np.load(file) as part:
        return Steps(*(torch.from_numpy(part[name]) for name in Steps._fields))


def fit(steps: Steps, updates: int) -> KernelPrior:
    """Return the fitted net, averaged over the training.

    Args:
        steps: training data.
        updates: number of updates of the weights.
    """
    torch.manual_seed(torch_seed(0, epoch=0, key="fit", purpose="prior"))
    prior = KernelPrior()
    optimizer = torch.optim.AdamW(prior.parameters(), _RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min(1, (done + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * done / updates))
    )
    averaged = AveragedModel(prior, multi_avg_fn=get_ema_multi_avg_fn(_DECAY))
    count = steps.maps.shape[1]
    with Progress("fit", total=updates, unit="update") as bar:
        for _ in range(updates):
            rows, numbers = torch.randint(len(steps.kernel), (_BATCH,)), torch.randint(count, (_BATCH,))
            turn = int(torch.randint(8, ()))
            maps, kernel = _turned(steps.maps[rows, numbers].float(), turn), _turned(steps.kernel[rows], turn)
            sigma, scale = steps.sigma[rows], steps.scale[rows]
            found = prior(maps, sigma, numbers / max(count - 1, 1), scale)
            error = lost_decibels(found, aligned(kernel, maps[:, 0]), sigma, scale).mean()
            optimizer.zero_grad()
            error.backward()
            torch.nn.utils.clip_grad_norm_(prior.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            averaged.update_parameters(prior)
            bar.advance()
    prior.load_state_dict(averaged.module.state_dict())
    return prior.eval()


def _turned(maps: Tensor, turn: int) -> Tensor:
    """Return one of the eight mirror images and quarter turns of (..., k, k)."""
    maps = maps.flip(-1) if turn & 1 else maps
    maps = maps.flip(-2) if turn & 2 else maps
    return maps.mT if turn & 4 else maps


def _frequencies() -> tuple[Tensor, Tensor]:
    return torch.fft.fftfreq(_GRID)[:, None], torch.fft.rfftfreq(_GRID)[None]


def _natural_power() -> Tensor:
    """Return (64, 33) shares of a picture's power at each frequency, which fall as 1/f^2."""
    rows, columns = _frequencies()
    power = 1 / (rows.square() + columns.square() + _GRID**-2)
    power[:, 1:-1] *= 2  # both halves of the spectrum count
    return power / power.sum()


def aligned(kernel: Tensor, found: Tensor) -> Tensor:
    """Return the spectra (B, 64, 33) of true kernels, shifted onto the estimates.

    The position of a kernel cannot be detected, as the restored picture is shifted the other way.

    Args:
        kernel: (B, k, k) true kernels.
        found: (B, k, k) estimates.
    """
    true = transfer_function(kernel, _GRID, _GRID)[:, 0]
    across = _natural_power() * transfer_function(found, _GRID, _GRID)[:, 0] * true.conj()
    half, side = _GRID // 2, _FINER * _GRID
    fine = torch.zeros(len(kernel), side, side // 2 + 1, dtype=across.dtype)
    fine[:, :half, :half], fine[:, 1 - half :, :half] = across[:, :half, :half], across[:, 1 - half :, :half]
    best = torch.fft.irfft2(fine, s=(side, side)).flatten(1).argmax(1)
    rows, columns = ((index + side // 2) % side - side // 2 for index in (best // side, best % side))
    f, g = _frequencies()
    angle = f * (rows[:, None, None] / _FINER) + g * (columns[:, None, None] / _FINER)
    return true * torch.polar(torch.ones_like(angle), -2 * torch.pi * angle)


def lost_decibels(found: Tensor, true: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
    """Return the loss in dB (B,) of an inverse filter made from a kernel against that of the true kernel.

    At x2, a restorer still inverts frequencies beyond those of the LR image, since aliasing shows them.

    Args:
        found: (B, k, k) kernels.
        true: (B, 64, 33) spectra of the true kernels, from `aligned`.
        sigma: (B,) noise levels.
        scale: (B,) s.
    """
    f, g = _frequencies()
    ours = transfer_function(found, _GRID, _GRID)[:, 0]
    beyond, floor = (torch.tensor([of[int(s)] for s in scale]) for of in (_BEYOND, _FLOOR))
    held = torch.maximum(f.abs(), g) <= 0.5 / scale[:, None, None]
    weight = _natural_power() * torch.where(held, 1.0, beyond[:, None, None])
    noise = (_WITHOUT_NOISE + _BY_NOISE * sigma)[:, None, None]
    left = 1 - true * ours.conj() / (ours.real.square() + ours.imag.square() + noise)
    best = noise / (true.real.square() + true.imag.square() + noise)
    error = (weight * (left.real.square() + left.imag.square())).sum((-2, -1))
    return 10 * ((error + floor).log10() - ((weight * best.square()).sum((-2, -1)) + floor).log10())


def write_prior(prior: KernelPrior, model: Path, output: Path) -> None:
    """Copy a model folder with a new kernel prior; everything else is unchanged, including number formats.

    Args:
        prior: the fitted net.
        model: folder of a blind model.
        output: folder of the copy.
    """
    manifest = read_manifest(model)
    assert isinstance(manifest.config, ModelConfig)
    weights = {name: value for name, value in load_file(model / manifest.used).items() if not name.startswith("prior.")}
    kind = weights["restorer.p.m_tail.weight"].dtype
    data = save(weights | {f"prior.{name}": value.to(kind) for name, value in prior.state_dict().items()})
    config = manifest.config.model_copy(update={"kernel": manifest.config.kernel.model_copy(update={"prior": True})})
    write_copy(model, output, manifest.used, data, {"prior": "tools/fit_kernel_prior.py"}, config)


if __name__ == "__main__":
    main()
