"""The pictures of a run: LR | bicubic | estimates | HR with true and estimated kernels, always of the same samples."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn

from pipeline.config import RunConfig
from pipeline.data.batch import Batch
from pipeline.data.manifest import read_shard
from pipeline.data.mixture import open_mixture
from pipeline.data.pictures import kernel_picture, rows_picture, to_uint8
from pipeline.data.samples import draw
from pipeline.data.task import open_bank
from pipeline.data.tiles import read_samples
from pipeline.data.validation import to_batch, validation_batches
from pipeline.images.decode import decode_tile
from pipeline.model import BlindUSRNet, USRNet, upsample

_ROWS = 4


def fixed_batch(config: RunConfig) -> Batch:
    """Make a few fixed samples, from the validation split if there is one; independent of epoch and worker."""
    if held_out := validation_batches(config, limit=_ROWS, batch_size=_ROWS):
        return held_out[0]
    first, bank = open_mixture(config.data).sets[0], open_bank(config.data.bank).kernels
    tiles = itertools.islice(read_samples(read_shard(first.uri, first.manifest.train[0])), _ROWS)
    draws = [
        draw(decode_tile(t.image), t.key, 0, epoch=0, seed=config.seed, data=config.data, bank=bank) for t in tiles
    ]
    return to_batch(draws, config.model.scales[0], config.data.lr_quantize)


@torch.no_grad()
def sample_rows(network: nn.Module, batch: Batch) -> np.ndarray:
    """Draw (H, W, 3) uint8, a row per sample: LR | bicubic | estimate by round | HR | true kernel | kernel by round."""
    training = network.training
    rounds = network.eval()(batch.lr, batch.scale, batch.sigma).rounds
    network.train(training)
    bicubic = upsample(batch.lr, batch.scale, "bicubic")
    rows = [
        [
            *(to_uint8(image[i]) for image in (batch.lr, bicubic, *(r.sr for r in rounds), batch.hr)),
            *(kernel_picture(kernel[i]) for kernel in (batch.kernel, *(r.kernel for r in rounds))),
        ]
        for i in range(len(batch.keys))
    ]
    return rows_picture(rows, side=2 * batch.hr.shape[-1])


@torch.no_grad()
def card_picture(network: BlindUSRNet | USRNet, batch: Batch) -> np.ndarray:
    """Draw (H, W, 3) uint8 for a model card, one row per sample: LR | bicubic | restored | HR."""
    if isinstance(network, BlindUSRNet):
        restored = network(batch.lr, batch.scale, batch.sigma).sr
    else:
        restored = network(batch.lr, batch.kernel, batch.scale, batch.sigma)
    bicubic = upsample(batch.lr, batch.scale, "bicubic")
    rows = [[to_uint8(image) for image in row] for row in zip(batch.lr, bicubic, restored, batch.hr, strict=True)]
    return rows_picture(rows, side=2 * batch.hr.shape[-1])


def contact_sheet(batch: Batch, limit: int = 8) -> np.ndarray:
    """Draw (H, W, 3) uint8 of the network's input, one row per sample: HR | LR | kernel."""
    rows = [
        [to_uint8(hr), to_uint8(lr), kernel_picture(kernel)]
        for hr, lr, kernel in zip(batch.hr[:limit], batch.lr[:limit], batch.kernel[:limit], strict=True)
    ]
    return rows_picture(rows, side=2 * batch.hr.shape[-1])
