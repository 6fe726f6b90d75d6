"""The cost of training runs as a table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from kernels_bank.codec import KernelCodec
from kernels_bank.runtime.progress import Progress
from kernels_bank.spec import checked_spec
from pipeline.config import RunConfig
from pipeline.training.planning.cost import training_cost

_GIB = 2.0**30
_COLUMNS: dict[str, Literal["left", "right"]] = {
    "run": "left",
    "patch": "right",
    "parameters": "right",
    "activations": "left",
    "GFLOP a sample": "right",
    "GiB for n samples": "right",
    "GiB at batch": "right",
    "fits": "right",
    "samples/s": "right",
    "hours on 1, n": "right",
    "dollars": "right",
}


@dataclass(frozen=True)
class Card:
    """Describe the accelerators for the plan."""

    memory_gib: float
    tflops: float  # sustained on these networks, 1e12 operations per second: a third to half of the data sheet's
    count: int = 8
    dollars: float = 2.5  # per hour for one


def plan_table(configs: Sequence[RunConfig], card: Card, *, kernel_size: int, components: int) -> str:
    """Write two rows per config: activations kept, and activations recomputed in the backward pass.

    Args:
        configs: runs; each is planned at its patch, its largest scale and its batch of one worker.
        card: accelerator of each worker.
        kernel_size: side of the kernels.
        components: length of the kernel code.

    Raises:
        BadRequestError: no bank can have kernels of this size or codes of this length.
    """
    settings = {"motion": 0, "size": kernel_size, "components": components}
    checked_spec(settings, f"--kernel-size {kernel_size}, --components {components}")
    codec = _codec(kernel_size, components)
    table = Table(
        caption=f"cards of {card.memory_gib:g} GiB that sustain {card.tflops:g} TFLOP/s at ${card.dollars:g} an hour; "
        f"n = {card.count}; memory in float32"
    )
    for title, justify in _COLUMNS.items():
        table.add_column(title, justify=justify)
    with Progress("planned", total=2 * len(configs), unit="step") as bar:
        for config in configs:
            for checkpointed in (False, True):
                table.add_row(*_row(config, codec, card, checkpointed=checkpointed))
                bar.advance()
    console = Console(file=io.StringIO(), width=170)
    with console.capture() as capture:
        console.print(table)
        console.print("* what the config says. Peaks are of tensors: leave some memory to cuDNN and the allocator.")
    return capture.get().rstrip()


def _row(config: RunConfig, codec: KernelCodec, card: Card, *, checkpointed: bool) -> tuple[str, ...]:
    model = config.model.with_restorer(checkpoint_activations=checkpointed)
    cost = training_cost(model, config.train, codec, config.data.patch, max(model.scales))
    batch = config.train.micro_batch or config.train.batch_size // config.train.workers
    rate = cost.samples_per_second(card.tflops * 1e12)
    hours = config.train.steps * config.train.batch_size / rate / 3600
    return (
        config.name,
        str(config.data.patch),
        f"{cost.parameters:,}",
        ("computed again" if checkpointed else "kept") + (" *" if model == config.model else ""),
        f"{cost.forward_flops / 1e9:.1f} + {cost.backward_flops / 1e9:.1f}",
        f"{cost.fixed_bytes / _GIB:.2f} + {cost.sample_bytes / _GIB:.3f} n",
        f"{cost.peak_bytes(batch) / _GIB:.2f} at {batch}",
        f"{cost.largest_batch(card.memory_gib * _GIB):,}",
        f"{rate:,.0f}",
        f"{hours:,.3g}, {hours / card.count:,.3g}",
        f"{hours * card.dollars:,.0f}",
    )


def _codec(size: int, components: int) -> KernelCodec:
    """Make a codec of the right sizes that encodes nothing."""
    pixels = size * size
    return KernelCodec(
        mean=np.full(pixels, 1 / pixels, np.float32),
        basis=np.zeros((pixels, components), np.float32),
        std=np.ones(components, np.float32),
        spectrum=np.ones(pixels),
    )
