"""The metrics of the last steps, kept on the device that computed them until they are read.

Reading a number from a device waits for all its queued work, and leaves it idle meanwhile. So the metrics of a step
stay on the device, and one copy fetches those of all steps since the last read.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

FINITE = "finite"  # a metric of every step: 1 if loss and gradient are finite on all ranks, otherwise 0


class NonFiniteLossError(RuntimeError):
    """Report that some worker's loss or gradient is not finite; weights and optimizer have not changed since."""


class _Entry(NamedTuple):
    step: int
    names: tuple[str, ...]
    values: Tensor
    told: dict[str, float]  # metrics that were already on the host
    keys: tuple[str, ...]


class Ledger:
    """Gather the metrics of steps, and check when they are read that all were finite."""

    def __init__(self) -> None:
        self._waiting: list[_Entry] = []
        self._rows: list[dict[str, float]] = []

    def add(self, step: int, metrics: dict[str, Tensor], told: dict[str, float], keys: tuple[str, ...]) -> None:
        """Take the metrics of a step. On a CPU they are read immediately, which costs nothing there.

        Args:
            step: number of the step.
            metrics: scalars on the device, including `FINITE`.
            told: metrics already on the host.
            keys: keys of the step's samples, for the error.

        Raises:
            NonFiniteLossError: on a CPU, as `mean` does.
        """
        dtype = metrics["loss"].dtype
        values = torch.stack([value.detach().to(dtype) for value in metrics.values()])
        self._waiting.append(_Entry(step, tuple(metrics), values, told, keys))
        if values.device.type == "cpu":
            self._look()

    def mean(self) -> dict[str, float]:
        """Return the mean of each metric over the steps since `clear`. All ranks must call it at the same steps.

        Raises:
            NonFiniteLossError: on all ranks alike, for the first step that was not finite.
        """
        self._look()
        return {name: sum(row[name] for row in self._rows) / len(self._rows) for name in self._rows[-1]}

    def clear(self) -> None:
        """Start a new mean."""
        self._rows.clear()

    def _look(self) -> None:
        if not self._waiting:
            return
        entries, self._waiting = self._waiting, []
        rows = torch.stack([entry.values for entry in entries]).tolist()  # the only wait for the device
        for entry, values in zip(entries, rows, strict=True):
            row = dict(zip(entry.names, values, strict=True))
            if not row.pop(FINITE):
                raise NonFiniteLossError(f"step {entry.step}: {_where(row['loss'], row['grad_norm'], entry.keys)}")
            self._rows.append(row | entry.told)


def _where(loss: float, norm: float, keys: tuple[str, ...]) -> str:
    """Describe loss, gradient norm and samples of the workers with a non-finite loss; if only the gradient is, of all.

    All ranks must call it: the gradient was summed over them, so no rank alone can tell whose batch was at fault.
    """
    found = [(0, loss, norm, keys)]
    if torch.distributed.is_initialized():
        ranks: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(ranks, (torch.distributed.get_rank(), *found[0][1:]))
        found = ranks
    guilty = [one for one in found if not math.isfinite(one[1])] or found
    return "; ".join(
        f"loss {value:.4g}, gradient norm {size:.4g} in worker {rank} on samples {', '.join(names)}"
        for rank, value, size, names in guilty
    )
