"""The numbers of the last steps, kept on the device that computed them until someone looks.

Whoever asks a device for a number waits until it has done all its work, and gives it nothing to do meanwhile. So the
metrics of a step stay where they are, and one copy brings those of all steps since the last look.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

FINITE = "finite"  # a metric of every step: 1 where loss and gradient are finite on all ranks, else 0


class NonFiniteLossError(RuntimeError):
    """Report that some worker's loss or gradient is not a number; weights and optimizer have not moved since."""


class _Entry(NamedTuple):
    step: int
    names: tuple[str, ...]
    values: Tensor
    told: dict[str, float]  # what the host knew already
    keys: tuple[str, ...]


class Ledger:
    """Gather the metrics of steps, and check when they are looked at that all were finite."""

    def __init__(self) -> None:
        self._waiting: list[_Entry] = []
        self._rows: list[dict[str, float]] = []

    def add(self, step: int, metrics: dict[str, Tensor], told: dict[str, float], keys: tuple[str, ...]) -> None:
        """Take the metrics of a step. On a CPU they are looked at immediately, as that costs nothing there.

        Args:
            step: its number.
            metrics: scalars on the device, `FINITE` among them.
            told: metrics that the host knows.
            keys: of the step's samples, for the error.

        Raises:
            NonFiniteLossError: on a CPU, as `mean` does.
        """
        dtype = metrics["loss"].dtype
        values = torch.stack([value.detach().to(dtype) for value in metrics.values()])
        self._waiting.append(_Entry(step, tuple(metrics), values, told, keys))
        if values.device.type == "cpu":
            self._look()

    def mean(self) -> dict[str, float]:
        """Return the mean of each metric over the steps since `clear`. All ranks must ask at the same steps.

        Raises:
            NonFiniteLossError: on all ranks alike, for the first step that was not finite.
        """
        self._look()
        return {name: sum(row[name] for row in self._rows) / len(self._rows) for name in self._rows[-1]}

    def clear(self) -> None:
        """Begin a new mean."""
        self._rows.clear()

    def _look(self) -> None:
        if not self._waiting:
            return
        entries, self._waiting = self._waiting, []
        rows = torch.stack([entry.values for entry in entries]).tolist()  # the one wait for the device
        for entry, values in zip(entries, rows, strict=True):
            row = dict(zip(entry.names, values, strict=True))
            if not row.pop(FINITE):
                raise NonFiniteLossError(f"step {entry.step}: {_where(row['loss'], row['grad_norm'], entry.keys)}")
            self._rows.append(row | entry.told)


def _where(loss: float, norm: float, keys: tuple[str, ...]) -> str:
    """Loss, gradient norm and samples of the workers whose loss is not finite; of all where only the gradient is not.

    All ranks must ask: the gradient was summed over them, so each alone cannot tell whose batch spoiled it.
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
