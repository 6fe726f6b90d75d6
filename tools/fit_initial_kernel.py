"""Fit the net of the initial kernel on stored features, a hundred times as fast as a run with `learn: spectral`.

The net's inputs are averages over an LR image's spectrum, which do not depend on its weights. So each drawn sample is
degraded once, and its features are computed for the whole image and for a smaller window. They are stored in parts in a
folder, which a second call reuses. A step then takes a small matrix product instead of a batch of images.

python tools/fit_initial_kernel.py --config jobs/configs/shipped-camera-spectral.yaml --features DIR --output MODEL
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import l1_loss, one_hot
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kernels_bank import KernelBank, KernelCodec
from kernels_bank.runtime.progress import Progress
from pipeline.catalogue import locate
from pipeline.config import RunConfig
from pipeline.data.manifest import read_shard
from pipeline.data.mixture import open_mixture
from pipeline.data.samples import degrade_draws, draw
from pipeline.data.tiles import read_samples
from pipeline.images.decode import decode_tile
from pipeline.model import BlindUSRNet, restorer_of
from pipeline.model.int8 import unpacked
from pipeline.model.inverse_error import inverse_error
from pipeline.model.reducer import Reducer
from pipeline.model.spectral import SpectralInit
from pipeline.model.weights import load_model, save_model
from pipeline.model_folder import CODEC, read_manifest
from pipeline.reduction import REDUCTIONS, compose
from pipeline.seeds import rng, torch_seed
from pipeline.shipped import shipped_folder
from pipeline.training.learner import build_network
from pipeline.training.objective import kernel_l1
from pipeline.yaml_file import read_yaml
from tools.model_copy import write_copy

PART = 10_000  # samples
_SHRUNK, _SMALLEST = 0.5, 0.55  # share of reduced tiles, and the smallest factor: sharper pictures, other spectra
# Shares of the samples: Gaussians, no blur but the reduction (what most pictures on the web are), and the rest.
_SHARES = (0.55, 0.15, 0.3)
_START = 0.3  # weight of the kernel that kernel steps start from


class Seen(NamedTuple):
    """Hold the net's inputs and targets for n windows."""

    features: Tensor  # (n, f) float16
    blur: Tensor  # (n, k, k)
    reduction: Tensor  # (n,) int64, of `REDUCTIONS`
    scale: Tensor  # (n,) int64
    sigma: Tensor  # (n,)
    side: Tensor  # (n,) LR pixels

    def take(self, rows: Tensor) -> Seen:
        """Return some of the windows."""
        return Seen(*(value[rows] for value in self))


def main() -> None:
    """Draw missing parts, fit, and write the model folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="run with learn 'spectral': data, start, loss, learning rate")
    parser.add_argument("--features", type=Path, required=True, help="folder of what is seen")
    parser.add_argument("--parts", type=int, default=24, help=f"of {PART} samples, each seen twice")
    parser.add_argument("--into", help="model whose restorer, kernel prior and trust the output keeps")
    parser.add_argument("--output", required=True, help="model folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    config = RunConfig.model_validate(read_yaml(arguments.config, f"--config {arguments.config}"))
    into = Path(locate(arguments.into).folder) if arguments.into else None
    if into and KernelCodec.load(into / CODEC).digest != KernelBank.open(config.data.bank).codec.digest:
        parser.error(f"--into {arguments.into}: its kernel code is not that of {config.data.bank}")
    arguments.features.mkdir(parents=True, exist_ok=True)
    files = [arguments.features / f"part-{number:03d}.npz" for number in range(arguments.parts)]
    missing = [file for file in files if not file.exists()]
    with Progress("features", total=len(missing) * PART, unit="sample") as bar:
        for file in missing:
            write_part(config, file, int(file.stem[-3:]), bar)
    seen = Seen(*(torch.cat(parts) for parts in zip(*map(read_part, files), strict=True)))
    network = fit(config, seen)
    if into:
        put_into(network, into, Path(arguments.output), digests(config))
    else:
        save_model(network, arguments.output, provenance=digests(config))
    print(f"{arguments.output}: fitted on {len(seen.scale)} windows")


def write_part(config: RunConfig, file: Path, number: int, bar: Progress) -> None:
    """Draw the samples of one part as the feed would, and store the net's inputs for them.

    Args:
        config: configuration of the run.
        file: file to write, atomically.
        number: number of the part, which with the seed determines the samples.
        bar: progress bar.
    """
    bank, sets = KernelBank.open(config.data.bank), open_mixture(config.data).sets
    samples = (t for one in sets for shard in one.manifest.train for t in read_samples(read_shard(one.uri, shard)))
    tiles = [decode_tile(tile.image) for tile in samples]
    pools = _pools(bank)
    random, net = rng(config.seed, epoch=number, key="features", purpose="fit"), SpectralInit(config.model.scales, 1)
    rows: list[tuple[np.ndarray, np.ndarray, int, int, float, float]] = []
    for index in range(PART):
        tile = tiles[random.integers(len(tiles))]
        if random.random() < _SHRUNK:
            factor = random.uniform(_SMALLEST, 1)
            tile = cv2.resize(tile, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        pool = pools[random.choice(3, p=_SHARES)]
        kernel = bank.kernels[pool[random.integers(len(pool))]]
        scale = int(random.choice(config.model.scales))
        data = config.data.model_copy(update={"patch": min(config.data.patch, min(tile.shape[:2]) // 12 * 12)})
        drawn = draw(tile, f"{number}-{index}", 0, epoch=0, seed=config.seed, data=data, bank=kernel[None])
        degraded = degrade_draws([drawn], scale, data.lr_quantize)
        lr, sigma = torch.from_numpy(degraded.lr), torch.from_numpy(degraded.sigma)
        reduction = REDUCTIONS.index(drawn.camera.reduction) if drawn.camera else 0
        for window in (lr, _window(lr, config.train.smallest_window or lr.shape[-1], random)):
            with torch.no_grad():
                features = net.features(window, sigma)[0].half().numpy()
            rows.append((features, drawn.kernel, reduction, scale, float(degraded.sigma[0]), float(window.shape[-1])))
        bar.advance()
    incoming = file.with_suffix(".incoming.npz")
    np.savez(incoming, *(np.stack(column) for column in zip(*rows, strict=True)))
    incoming.rename(file)


def _pools(bank: KernelBank) -> list[np.ndarray]:
    """Return the bank's Gaussians, its deltas and its other kernels; a missing kind is replaced by all kernels."""
    family = bank.family
    of = [family == "gaussian", family == "delta", ~np.isin(family, ("gaussian", "delta"))]
    return [np.flatnonzero(mask if mask.any() else np.ones_like(mask)) for mask in of]


def _window(lr: Tensor, smallest: int, random: np.random.Generator) -> Tensor:
    """Cut a smaller square of (1, 3, h, h), with its corner on JPEG's 8 x 8 grid."""
    whole = lr.shape[-1]
    side = int(np.exp(random.uniform(np.log(min(smallest, whole)), np.log(whole))))
    top, left = (int(first) // 8 * 8 for first in random.integers(0, whole - side + 1, 2))
    return lr[..., top : top + side, left : left + side]


def read_part(file: Path) -> Seen:
    """Read a part written by `write_part`."""
    with np.load(file) as part:
        features, blur, reduction, scale, sigma, side = (torch.from_numpy(part[name]) for name in part.files)
    return Seen(features, blur, reduction, scale, sigma.float(), side.float())


def fit(config: RunConfig, seen: Seen) -> BlindUSRNet:
    """Return the start's network with a new net of the initial kernel, averaged over the training.

    Args:
        config: configuration of the run; its `train` has start, steps, batch, loss and learning rate.
        seen: training data.
    """
    train, loss = config.train, config.train.loss
    network = build_network(config, KernelBank.open(config.data.bank).codec)
    if train.start_from:
        folder = shipped_folder(train.start_from) if train.start_from.startswith("shipped:") else train.start_from
        network.restorer.load_state_dict(restorer_of(load_model(folder)).state_dict())
    spectral = network.spectral
    assert spectral is not None
    optimizer = torch.optim.AdamW(spectral.parameters(), train.kernel_learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, train.kernel_learning_rate, total_steps=train.steps, pct_start=0.02
    )
    averaged = AveragedModel(spectral, multi_avg_fn=get_ema_multi_avg_fn(train.ema_decay))
    with Progress("fit", total=train.steps, unit="step") as bar:
        for step, rows in enumerate(_batches(config, seen)):
            batch = seen.take(rows)
            scale = int(batch.scale[0])
            answer = spectral.answer(batch.features.float(), scale, batch.sigma, batch.side)
            assert answer.start is not None, "model.kernel.reductions is what such a net is for"
            true = one_hot(batch.reduction, len(REDUCTIONS)).float()
            kernel = compose(batch.blur, true, scale, "corner")
            estimate = Reducer(answer.shares, scale, "corner").compose(network.decode(answer.code))
            error = loss.inverse * inverse_error(estimate, kernel, batch.sigma, scale).mean()
            error = error + loss.kernel * kernel_l1(estimate, kernel)
            # The error of an inverse filter has no useful gradient at first, so both answers begin with the code.
            for blur_code in (answer.start, answer.code)[: 1 + (step < train.warmup_steps)]:
                error = error + _START * l1_loss(blur_code, network.encode(batch.blur))
                error = error + _START * kernel_l1(network.decode(blur_code), batch.blur)
            optimizer.zero_grad()
            error.backward()
            torch.nn.utils.clip_grad_norm_(spectral.parameters(), train.clip_norm)
            optimizer.step()
            schedule.step()
            averaged.update_parameters(spectral)
            bar.advance()
    spectral.load_state_dict(averaged.module.state_dict())
    return network.eval()


def _batches(config: RunConfig, seen: Seen) -> Iterator[Tensor]:
    """Yield batches of row indices, each of one scale, with the scales in turn."""
    generator = torch.Generator().manual_seed(torch_seed(config.seed, epoch=0, key="batches", purpose="fit"))
    pools = [torch.nonzero(seen.scale == scale)[:, 0] for scale in config.model.scales]
    for step in range(config.train.steps):
        pool = pools[step % len(pools)]
        yield pool[torch.randint(len(pool), (config.train.batch_size,), generator=generator)]


def put_into(network: BlindUSRNet, model: Path, output: Path, origin: dict[str, str]) -> None:
    """Write a copy of a model with the initial kernel's net of this network; everything else is unchanged.

    Args:
        network: network with the fitted net.
        model: folder of a blind model with a net of the same shape, for the same codec.
        output: folder of the copy.
        origin: digests of the net's data.
    """
    manifest, spectral = read_manifest(model), network.spectral
    assert spectral is not None
    weights = unpacked(load_file(model / manifest.used))
    kind = weights["restorer.p.m_tail.weight"].dtype
    own = {f"spectral.{name}": value.to(kind) for name, value in spectral.state_dict().items()}
    write_copy(model, output, manifest.used, save(weights | own), {f"initial_kernel.{k}": v for k, v in origin.items()})


def digests(config: RunConfig) -> dict[str, str]:
    """Return the digests of the model's data."""
    origin = {"shards": open_mixture(config.data).digest, "bank": KernelBank.open(config.data.bank).digest}
    return origin | {"restorer": config.train.start_from or "none"}


if __name__ == "__main__":
    main()
