"""Memory of the feed over an epoch, and over one ten times as long.

python tools/feed_memory.py [--tiles 360] draws docs/pictures/feed-memory.png: what this process and all of Ray's hold
(pages shared by several count once), and how much of it is the object store, while one worker reads the epoch as fast
as it comes.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import psutil

from kernels_bank.generate import build_bank
from kernels_bank.runtime.cluster import connect
from kernels_bank.spec import KernelBankSpec
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.data.feed import Feed
from pipeline.data.manifest import ShardSettings, read_manifest
from pipeline.data.shards import make_shards
from pipeline.images.encode import encode_png

BATCH = 16


def main(tiles: int) -> None:
    """Measure both epochs and draw them."""
    connect(min_cpus=2)
    curves = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_bank(KernelBankSpec(gaussian=2000, motion=0), str(folder / "bank"))
        for factor in (1, 10):
            shards = write_shards(folder / f"x{factor}", tiles * factor)
            curves[factor] = epoch(shards, str(folder / "bank"))
            seen, total, _ = curves[factor][-1]
            print(f"{seen} samples: peak {max(c[1] for c in curves[factor]):.0f} MiB, last {total:.0f} MiB", flush=True)
    draw(curves)


def write_shards(folder: Path, tiles: int) -> str:
    """Write a set of noise tiles of 480 x 480, which have the largest possible files."""
    (folder / "in").mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(tiles // 12):
        image = random.integers(100, 156, (480 * 3, 480 * 4, 3), dtype=np.uint8)
        (folder / "in" / f"{i:05d}.png").write_bytes(encode_png(image))
    make_shards(str(folder / "in"), str(folder / "shards"), ShardSettings(shard_mib=16))
    return str(folder / "shards")


def epoch(shards: str, bank: str) -> list[tuple[int, float, float]]:
    """Measure (samples seen, MiB in all, MiB of it in the object store) through one epoch."""
    config = RunConfig(
        name="memory",
        data=DataConfig(shards=shards, bank=bank, sigma=(0.0, 0.05)),
        train=TrainConfig(steps=1, batch_size=BATCH),
    )
    count = read_manifest(shards).samples * config.data.patches_per_tile // BATCH
    seen, curve, stop = 0, [], threading.Event()

    def watch() -> None:
        while not stop.wait(1.0):
            curve.append((seen, *memory()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for batch in Feed(config, stages=(), workers=1, rank=0).batches(count, cpus=2):
        seen += len(batch.keys)
    stop.set()
    watcher.join()
    time.sleep(5)  # until Ray frees the last blocks
    return curve


def memory() -> tuple[float, float]:
    """Measure MiB of this process and its descendants, and the share of shared memory, which is the object store."""
    total = shared = 0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            for region in process.memory_maps():
                total += region.pss
                shared += region.pss if "plasma" in region.path or "/dev/shm" in region.path else 0
    return total / 2**20, shared / 2**20


def draw(curves: dict[int, list[tuple[int, float, float]]]) -> None:
    """Draw the picture."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for (factor, curve), colour in zip(curves.items(), ("tab:orange", "tab:blue"), strict=True):
        seen, total, store = zip(*curve, strict=True)
        axes.plot(seen, total, color=colour, label=f"all processes, epoch of {seen[-1]} samples")
        axes.plot(seen, store, color=colour, linestyle=":", label=f"object store ({factor}x)")
    axes.set(xlabel="samples read", ylabel="MiB", ylim=(0, None))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(Path(__file__).parents[1] / "docs" / "pictures" / "feed-memory.png", dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=360, help="tiles of the short epoch; the long one has ten times")
    main(parser.parse_args().tiles)
