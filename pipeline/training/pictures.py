"""The pictures of a run: LR | estimate | HR with the true and the estimated kernel, always of the same samples."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn

from kernels_bank import KernelBank
from pipeline.config import RunConfig
from pipeline.data.feed import Batch
from pipeline.data.images import decode_tile
from pipeline.data.manifest import read_manifest, read_shard
from pipeline.data.pictures import kernel_picture, rows_picture, to_uint8
from pipeline.data.samples import degrade_draws, draw
from pipeline.data.tiles import read_samples

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
def sample_row(network: nn.Module, batch: Batch) -> np.ndarray:
    """(H, W, 3) uint8: one row a sample, LR | estimate | HR | true kernel | estimated kernel."""
    training = network.training
    out = network.eval()(batch.lr, batch.scale, batch.sigma)
    network.train(training)
    rows = []
    for lr, sr, hr, true, estimated in zip(batch.lr, out.sr, batch.hr, batch.kernel, out.kernel, strict=True):
        rows.append([to_uint8(lr), to_uint8(sr), to_uint8(hr), kernel_picture(true), kernel_picture(estimated)])
    return rows_picture(rows, side=2 * batch.hr.shape[-1])


def contact_sheet(batch: Batch, limit: int = 8) -> np.ndarray:
    """(H, W, 3) uint8: what the network will see, one row a sample: HR | LR | kernel."""
    rows = [
        [to_uint8(hr), to_uint8(lr), kernel_picture(kernel)]
        for hr, lr, kernel in zip(batch.hr[:limit], batch.lr[:limit], batch.kernel[:limit], strict=True)
    ]
    return rows_picture(rows, side=2 * batch.hr.shape[-1])
