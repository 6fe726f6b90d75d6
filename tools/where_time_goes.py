"""Write the tables of docs/speed.md: the time of each part, compared with the limits of this machine.

python -m tools.where_time_goes

Times are CPU seconds of one thread, which other processes change little: a 400 x 400 JPEG restored x2 by the shipped
model, a 64 x 64 one, a training step of `tiny-x2-cpu`, a sample of its feed. The photographs are those of the
quickstart.
"""

from __future__ import annotations

import argparse
import io
import re
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import yaml
from torch import nn
from torch.profiler import ProfilerActivity, profile

from kernels_bank import KernelCodec, sample_gaussian
from pipeline.config import RunConfig
from pipeline.data import samples, tiles
from pipeline.data.photographs import TRAIN, copy_photographs
from pipeline.images.decode import decode_image, decode_photograph, decode_tile
from pipeline.images.encode import encode_photograph
from pipeline.images.photograph import Photograph
from pipeline.inference import Restorer, restorer
from pipeline.inference.allocator import keep_freed_memory
from pipeline.inference.layout import torus_length, torus_margin
from pipeline.model import BlindUSRNet, USRNet, blind, restorer_of, usrnet
from pipeline.model.fourier import BlurOperator
from pipeline.shipped import FOR_PHOTOGRAPHS
from pipeline.training.learner import WeightAverage, build_network
from pipeline.training.objective import TrainingObjective
from tools.blocks import write_block
from tools.roofline import Machine, measure_machine
from tools.stopwatch import Point, Stopwatch

HERE = Path(__file__).parents[1]
PAGE, CONFIG = HERE / "docs" / "speed.md", HERE / "jobs" / "configs" / "tiny-x2-cpu.yaml"
SIDE, SMALL, SCALE, BAR = 400, 64, 2, 24
STAGES = (
    *("decode", "noise level", "initial kernel", "kernel steps", "restorations for the steps"),
    *("the guard and its restorations", "restore", "trust", "other", "encode"),
)
NETWORK = ("convolutions", "the prior's rest", "FFTs", "the data step's rest")


class Row(NamedTuple):
    """Hold a part's name, its seconds, and its least seconds on this machine, if known."""

    name: str
    seconds: float
    least: float | None = None


def main() -> None:
    """Measure, and write the tables into the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    keep_freed_memory()
    machine = measure_machine()
    with tempfile.TemporaryDirectory() as folder:
        photographs, _ = copy_photographs(Path(folder))
        pictures = [decode_image((photographs / name).read_bytes()) for name in TRAIN]
    model = Restorer.load(FOR_PHOTOGRAPHS)
    watched = restoration(model, pictures[0][:SIDE, :SIDE], machine)
    small = pictures[0][100 : 100 + SMALL, 200 : 200 + SMALL]
    known = restoration(model, small, machine, sample_gaussian(1, 25, rng=np.random.default_rng(0))[0])
    feed, draws = feed_sample(pictures)
    tables = [
        str(machine),
        f"**A photograph**, {SIDE} x {SIDE}, blind, x{SCALE}, CPU ms by stage:",
        table(stages(watched)),
        "The same by part; *at least* is what the rates above allow, within a tenth on a busy machine:",
        table(parts(watched)),
        f"**A small one**, {SMALL} x {SMALL}, kernel given, x{SCALE}:",
        table(parts(known)),
        several_at_once(model, known),
        "**A training step**, tiny, batch 8:",
        table(training_step(draws, machine)),
        "**A sample of the feed**, 64 x 64:",
        table(feed, digits=3),
    ]
    write_block(PAGE, "tools.where_time_goes", "\n\n".join(tables))


def table(rows: Sequence[Row], digits: int = 0) -> str:
    """Return a Markdown table of milliseconds and shares, with bars and `digits` decimals."""
    total, bounds = sum(row.seconds for row in rows), any(row.least is not None for row in rows)
    lines = ["| part | ms |" + " at least |" * bounds + " share | |", "|---|---|" + "---|" * bounds + "---|---|"]
    for name, seconds, least in rows:
        bound = "" if least is None else f"{1000 * least:.{digits}f}"
        bar = "█" * round(BAR * seconds / total)
        middle = f" {bound} |" * bounds
        lines.append(f"| {name} | {1000 * seconds:.{digits}f} |{middle} {seconds / total:.0%} | {bar} |")
    return "\n".join(lines)


def points(machine: Machine) -> list[Point]:
    """List the functions to measure while a photograph is restored."""
    return [
        Point(restorer, "noise_level", "noise level"),
        Point(restorer, "estimate_kernel", "the guard and its restorations"),
        Point(restorer, "restore_planes", "restore"),
        Point(restorer, "features", "trust"),
        Point(BlindUSRNet, "initial", "initial kernel"),
        Point(blind, "edge_kernel", "kernel steps"),
        Point(blind, "refine_kernel", "kernel steps"),
        Point(USRNet, "unfold", "unfoldings"),
        Point(usrnet.ResUNet, "forward", "the prior's rest"),
        Point(nn.Conv2d, "forward", "convolutions", machine.convolution),
        Point(nn.ConvTranspose2d, "forward", "convolutions", machine.convolution),
        Point(BlurOperator, "step", "the data step's rest", machine.data_step),
        Point(torch.fft, "rfft2", "FFTs", machine.transform),
        Point(torch.fft, "irfft2", "FFTs", machine.transform),
    ]


def restoration(model: Restorer, picture: np.ndarray, machine: Machine, kernel: np.ndarray | None = None) -> Stopwatch:
    """Restore a JPEG as `jobs/restore.py` does, once to warm up and once measured.

    Args:
        model: the shipped model.
        picture: (h, w, 3) uint8.
        machine: rates of this machine, for the least times.
        kernel: (k, k), if it is given.
    """
    file = encode_photograph(Photograph(picture, "jpeg"), quality=92)
    for _ in range(2):
        watched = Stopwatch()
        with watched.watch(points(machine)):
            with watched.stage("decode"):
                photograph = decode_photograph(file)
            with watched.stage("other"):
                restored = model.restore(photograph.pixels, SCALE, "auto", kernel, file_error=photograph.file_error)
            with watched.stage("encode"):
                encode_photograph(Photograph(restored.image, "png"), quality=100)
    return watched


def stages(watched: Stopwatch) -> list[Row]:
    """Sum the measured seconds by the innermost open stage."""
    seconds = dict.fromkeys(STAGES, 0.0)
    for path, value in watched.seconds.items():
        stage = next(name for name in reversed(path) if name in STAGES)
        seconds["restorations for the steps" if stage == "kernel steps" and "unfoldings" in path else stage] += value
    return [Row(name, value) for name, value in seconds.items()]


def parts(watched: Stopwatch) -> list[Row]:
    """Sum the measured seconds by part of the network."""
    bounds = {"convolutions", "FFTs", "the data step's rest"}
    rows = [Row(name, watched.total(name), watched.bound(name) if name in bounds else None) for name in NETWORK]
    rest = sum(watched.seconds.values()) - sum(row.seconds for row in rows)
    return [*rows, Row("all else", rest)]


def several_at_once(model: Restorer, alone: Stopwatch, count: int = 8) -> str:
    """Describe the gain of restoring several small pictures at once, and its upper limit.

    Args:
        model: the shipped model.
        alone: measured times of a single picture.
        count: number of pictures at once.
    """
    restored = restorer_of(model.network)
    side = torus_length(SMALL, torus_margin(SCALE, 25))
    lr, kernel = torch.rand(count, 3, side, side), torch.ones(count, 25, 25) / 25**2
    with torch.inference_mode():
        one = min(_each(lambda: restored(lr[:1], kernel[:1], SCALE, 0.01), 1) for _ in range(3))
        each = min(_each(lambda: restored(lr, kernel, SCALE, 0.01), 1) for _ in range(2)) / count
    whole, bound = sum(alone.seconds.values()), alone.bound("convolutions")
    return textwrap.fill(
        f"With the band that makes it periodic it has {side} x {side} pixels. Alone it takes the network "
        f"{1000 * one:.0f} ms, of {count} at once each {1000 * each:.0f}: {one / each:.2f}x. Were convolutions as fast "
        f"as matrix products and all else free, the whole would be {whole / bound:.1f}x as fast.",
        width=120,
    )


def feed_sample(pictures: Sequence[np.ndarray], rounds: int = 5) -> tuple[list[Row], list[samples.Draw]]:
    """Make samples as a data task does; return the times of a sample's parts, and draws for a training step."""
    data, bank = _config().data, sample_gaussian(512, 25, rng=np.random.default_rng(0))
    stream = io.BytesIO()
    for number, picture in enumerate(pictures):
        tiles.write_samples(tiles.cut(picture, 480, name=str(number), sha256=f"{number:064d}"), stream)
    tar, count, watched = stream.getvalue(), 0, Stopwatch()
    degraded = [Point(samples, "degrade", "blur and decimation")]
    for _ in range(rounds):
        with watched.stage("reading the shard"):
            held = list(tiles.read_samples(tar))
        draws = []
        for tile in held:
            with watched.stage("decoding a tile"):
                pixels = decode_tile(tile.image)
            with watched.stage("crop, turn, kernel"):
                draws += [
                    samples.draw(pixels, tile.key, patch, epoch=0, seed=0, data=data, bank=bank)
                    for patch in range(data.patches_per_tile)
                ]
        with watched.watch(degraded), watched.stage("noise, batches"):
            for first in range(0, len(draws), 16):
                samples.degrade_draws(draws[first : first + 16], SCALE, "none")
        count += len(draws)
    return [Row(path[-1], seconds / count) for path, seconds in watched.seconds.items()], draws


def training_step(draws: Sequence[samples.Draw], machine: Machine, rounds: int = 3) -> list[Row]:
    """Run steps of the tiny network; scale the profiler's shares of operators to CPU seconds."""
    config, batch = _config(), list(draws[: _config().train.batch_size])
    codec = KernelCodec.fit(sample_gaussian(4096, 25, rng=np.random.default_rng(0)))
    torch.manual_seed(0)
    network = build_network(config, codec).train()
    objective, average = TrainingObjective(network, config.train), WeightAverage(network, config.train.ema_decay)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    given = samples.degrade_draws(batch, SCALE, "none")
    lr, kernel, sigma = (torch.from_numpy(value) for value in given)
    hr = torch.from_numpy(np.stack([d.hr for d in batch])).float() / 255

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        objective(lr, hr, kernel, sigma, SCALE)["loss"].backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(network)

    seconds = _each(step, rounds)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        _each(step, rounds)
    taken: dict[str, float] = dict.fromkeys((*_OPERATORS.values(), "all else"), 0.0)
    for event in seen.key_averages():
        part = next((name for pattern, name in _OPERATORS.items() if re.search(pattern, event.key)), "all else")
        taken[part] += event.self_cpu_time_total
    whole, watched = sum(taken.values()), Stopwatch()
    with watched.watch(points(machine)):
        objective(lr, hr, kernel, sigma, SCALE)
    forward = watched.bound("convolutions")
    # The backward pass of each convolution consists of two: one with respect to its image, one to its weights.
    bounds = {"convolutions, forward": forward, "convolutions, backward": 2 * forward}
    return [Row(name, seconds * value / whole, bounds.get(name)) for name, value in taken.items()]


_OPERATORS = {
    "convolution_backward": "convolutions, backward",
    "convolution": "convolutions, forward",
    "fft|Fft": "FFTs",
    "[Aa]dam|lerp|norm": "clipping, Adam, averaged weights",
}


def _each(work: Callable[[], None], rounds: int) -> float:
    work()
    started = time.thread_time()
    for _ in range(rounds):
        work()
    return (time.thread_time() - started) / rounds


def _config() -> RunConfig:
    return RunConfig.model_validate(yaml.safe_load(CONFIG.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
