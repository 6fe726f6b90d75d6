"""The feed at 8, 64 and 512 GPUs, on paper: what it needs, and how long a GPU would wait for it.

python tools/scaling_plan.py [--rate 800 --demand 300 ...] prints the tables of docs/data.md. The rate of a core is
measured (`make bench`); what a GPU consumes, and what the network gives, are assumptions to be replaced by your own.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, replace

KIB, MIB = 2**10, 2**20


@dataclass(frozen=True)
class Plant:
    """Describe a cluster and its settings; sizes in bytes, times in seconds."""

    gpus: int = 8
    measured: float = 800  # samples/s of one core in a data task with 8 patches per tile
    demand: float = 300  # samples/s of one GPU, assumed
    tiles: int = 12_000  # DIV2K cut into tiles of 480
    tile_bytes: float = 400 * KIB
    shard_bytes: float = 128 * MIB
    shards_per_window: int = 2
    patches_per_tile: int = 8
    sample_bytes: float = 56 * KIB  # in the object store, measured
    connection: float = 80 * MIB  # rate of one GET, assumed
    latency: float = 0.1  # of one GET; one in a hundred takes twenty times as long
    cores: int = 1  # data tasks per GPU

    @property
    def shards(self) -> float:
        """Count the shards of the set."""
        return max(1.0, self.tiles * self.tile_bytes / self.shard_bytes)

    @property
    def rate(self) -> float:
        """Return the samples/s of one core: with 8 patches per tile, half of the work is decoding the tile."""
        return self.measured / (0.5 + 0.5 * 8 / self.patches_per_tile)

    @property
    def window_samples(self) -> int:
        """Count the samples of one task."""
        return int(self.shards_per_window * self.shard_bytes / self.tile_bytes * self.patches_per_tile)


def waiting(plant: Plant, seconds: float = 3600, seed: int = 0) -> float:
    """Simulate the share of the time that one GPU waits after its first batch.

    A task reads its window, spends half of its work on decoding, then yields samples evenly.
    """
    draw = random.Random(seed)
    window, work = plant.window_samples, plant.window_samples / plant.rate
    free = [0.0] * plant.cores
    now = stalled = 0.0
    while now < seconds:
        core = free.index(min(free))
        slow = 20 if draw.random() < 0.01 else 1
        read = plant.shards_per_window * (plant.latency * slow + plant.shard_bytes / plant.connection)
        first, last = free[core] + read + work / 2, free[core] + read + work
        free[core] = last
        begin = max(now, first)
        end = max(begin + window / plant.demand, last)
        if now:
            stalled += end - now - window / plant.demand
        now = end
    return max(0.0, stalled / now)


def described(plant: Plant) -> list[str]:
    """Format one row of the table."""
    samples = plant.gpus * plant.demand
    in_flight = plant.gpus * plant.cores / (plant.shards / plant.shards_per_window)
    return [
        f"{plant.gpus}",
        f"{plant.cores}",
        f"{plant.shard_bytes / MIB:.0f}",
        f"{plant.shards:.0f}",
        f"{samples / 1e3:.1f}k",
        f"{plant.demand / plant.rate:.2f}",
        f"{samples * plant.tile_bytes / plant.patches_per_tile / 2**30:.2f}",
        f"{2 * samples / plant.patches_per_tile / (plant.shard_bytes / plant.tile_bytes):.1f}",
        f"{plant.demand * plant.sample_bytes / MIB:.0f}",
        f"{in_flight:.2f}",
        f"{waiting(plant):.1%}",
    ]


HEADER = (
    "GPUs | tasks a GPU | shard MiB | shards | samples/s | busy cores a GPU | read GiB/s | S3 requests/s | "
    "MiB/s to a GPU | epochs in flight | GPU waits"
)


def table(title: str, plants: list[Plant]) -> None:
    """Print rows as Markdown."""
    print(f"\n{title}\n\n| {HEADER} |\n|{'---|' * len(HEADER.split('|'))}")
    for plant in plants:
        print(f"| {' | '.join(described(plant))} |")


def main(base: Plant) -> None:
    """Print the three sizes, and the settings that break them."""
    sizes = [replace(base, gpus=gpus) for gpus in (8, 64, 512)]
    table("Defaults:", sizes)
    table("Shards of 8 MiB:", [replace(p, shard_bytes=8 * MIB) for p in sizes])
    hungry = replace(base, demand=1500)
    table("A GPU that takes 1500 samples/s:", [replace(hungry, cores=cores) for cores in (1, 2, 3)])
    table("The same, 32 patches a tile:", [replace(hungry, patches_per_tile=32, cores=2)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=Plant.measured)
    parser.add_argument("--demand", type=float, default=Plant.demand)
    given = parser.parse_args()
    main(Plant(measured=given.rate, demand=given.demand))
