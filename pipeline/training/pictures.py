"""The pictures of a run: LR | estimate | HR with the true and the estimated kernel, always of the same samples."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import torch

from kernels_bank import KernelBank
from pipeline.config import RunConfig
from pipeline.data.feed import Batch
from pipeline.data.images import decode_tile
from pipeline.data.manifest import read_manifest, read_shard
from pipeline.data.samples import degrade_draws, draw
from pipeline.data.tiles import read_samples
from pipeline.model import BlindUSRNet

_ROWS = 4


def validation_batch(config: RunConfig, device: torch.device) -> Batch:
    """A few fixed samples, of the validation split where there is one; independent of epoch and worker."""
    manifest = read_manifest(config.data.shards)
    shard = (manifest.validation or manifest.train)[0]
    bank = KernelBank.open(config.data.bank).kernels
    tiles = list(itertools.islice(read_samples(read_shard(config.data.shards, shard)), _ROWS))
    draws = [
        draw(decode_tile(tile.png), tile.key, 0, epoch=0, seed=config.seed, data=config.data, bank=bank)
        for tile in tiles
    ]
    scale = config.model.scales[0]
    return Batch(
        lr=torch.from_numpy(degrade_draws(draws, scale, config.data.lr_quantize)).to(device),
        hr=torch.from_numpy(np.stack([d.hr for d in draws])).to(device).float().div_(255),
        kernel=torch.from_numpy(np.stack([d.kernel for d in draws])).to(device),
        sigma=torch.tensor([d.sigma for d in draws], dtype=torch.float32, device=device),
        scale=scale,
        keys=tuple(d.key for d in draws),
        replaced=0,
    )


@torch.no_grad()
def sample_row(network: BlindUSRNet, batch: Batch) -> np.ndarray:
    """(H, W, 3) uint8: one row a sample, LR | estimate | HR | true kernel | estimated kernel."""
    training = network.training
    out = network.eval()(batch.lr, batch.scale, batch.sigma)
    network.train(training)
    side = batch.hr.shape[-1]
    rows = []
    for lr, sr, hr, true, estimated in zip(batch.lr, out.sr, batch.hr, batch.kernel, out.kernel, strict=True):
        images = [_enlarge(_to_uint8(image), side) for image in (lr, sr, hr)]
        kernels = [_enlarge(kernel_picture(k.cpu().numpy()), side) for k in (true, estimated)]
        rows.append(np.concatenate(images + kernels, axis=1))
    return np.concatenate(rows)


def kernel_picture(kernel: np.ndarray) -> np.ndarray:
    """(k, k, 3) uint8: the kernel scaled so that its largest value is white."""
    grey = np.clip(kernel / max(float(kernel.max()), 1e-12) * 255, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _to_uint8(image: torch.Tensor) -> np.ndarray:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def _enlarge(image: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_NEAREST))
