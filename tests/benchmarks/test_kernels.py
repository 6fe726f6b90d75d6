"""What kernels cost: `make bench` prints a Markdown table of each part. Ratios are taken in one run, on one core.

The tables of docs/kernels.md come from here. Those that need real data (published weights, Set5, measured motion
kernels) are skipped without it.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from scipy import ndimage

from kernels_bank import KernelBankSpec, KernelCodec, load_kernels, sample_gaussian, sample_motion
from kernels_bank.centring import correlation, recentre
from kernels_bank.codec_quality import LENGTHS, decoded_psnr
from kernels_bank.gaussian import draw_gaussian
from kernels_bank.motion import Shake
from kernels_bank.sampling import draw_range
from pipeline.degrade import degrade
from pipeline.evaluation import psnr

REPO = Path(__file__).parents[2]
SIZE, STEPS = 21, 192
BATCH = 1024

Report = Callable[[str, list[str], list[list[str]]], None]


@pytest.fixture(scope="module")
def report() -> Iterator[Report]:
    """Collects tables and prints them after the last test, ready to be pasted into a document."""
    tables: list[str] = []

    def add(title: str, head: list[str], rows: list[list[str]]) -> None:
        lines = [f"\n**{title}**\n", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        tables.append("\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]))

    yield add
    print("\n" + "\n".join(tables))


def plain_gaussian(along: float, across: float, ux: float, uy: float, nodes: int) -> np.ndarray:
    """One Gaussian integrated over its pixels, as one writes it with NumPy: the quadrature points of all pixels."""
    offsets, weights = np.polynomial.legendre.leggauss(nodes)
    points = (np.arange(SIZE)[:, None] - SIZE // 2 + offsets / 2).ravel()
    x, y = np.meshgrid(points, points)
    density = np.exp(-0.5 * (((ux * x + uy * y) / along) ** 2 + ((ux * y - uy * x) / across) ** 2))
    weight = np.tile(weights, SIZE)
    kernel = (density * weight * weight[:, None]).reshape(SIZE, nodes, SIZE, nodes).sum((1, 3))
    return kernel / kernel.sum()


def plain_gaussians(n: int) -> np.ndarray:
    """The loop over kernels, with the node counts that `sample_gaussian` takes in this range of sigma."""
    sigmas, axis = draw_gaussian(n, rng=philox(), sigma=(0.6, 5.0), isotropic=0.25, sigma_law="sigma")
    kernels = []
    for (along, across), (ux, uy) in zip(sigmas, axis, strict=True):
        smaller = min(along, across)
        count = 2 if smaller >= 3.6 else 3 if smaller >= 1.4 else 4 if smaller >= 0.8 else 6
        kernels.append(plain_gaussian(along, across, ux, uy, count))
    return np.stack(kernels)


def sampled_gaussians(n: int) -> np.ndarray:
    """The loop over kernels with one point a pixel: the literature's habit, wrong for narrow kernels."""
    sigmas, axis = draw_gaussian(n, rng=philox(), sigma=(0.6, 5.0), isotropic=0.25, sigma_law="sigma")
    return np.stack([plain_gaussian(a, b, x, y, 1) for (a, b), (x, y) in zip(sigmas, axis, strict=True)])


def plain_path(rng: np.random.Generator, law: Shake) -> np.ndarray:
    """The walk alone, (steps, 2), step by step with NumPy vectors and matrices: how such generators are written."""
    memory = math.exp(rng.uniform(*np.log(law.memory)))
    forget, follow = min(1 / (memory * STEPS), 1), min(1 / (math.exp(rng.uniform(*np.log(law.inertia))) * STEPS), 1)
    angle = rng.standard_normal() * law.turn / STEPS
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    jumps = rng.random() * law.shakes / STEPS if rng.random() < law.shaken else 0.0
    force = rng.standard_normal(2)
    velocity, position, path = force.copy(), np.zeros(2), np.empty((STEPS, 2))
    for step in range(STEPS):
        force = force + np.sqrt(2 * forget) * rng.standard_normal(2) - forget * force
        velocity = velocity + follow * (force - velocity)
        if rng.random() < jumps:
            velocity = velocity + law.shake * rng.standard_normal(2)
        force, velocity = turn @ force, turn @ velocity
        position = position + velocity
        path[step] = position
    return path


def float_path(rng: random.Random, law: Shake) -> list[tuple[float, float]]:
    """`plain_path` without NumPy, on bare floats: as fast as plain Python goes."""
    memory = math.exp(rng.uniform(*map(math.log, law.memory)))
    forget = min(1 / (memory * STEPS), 1.0)
    follow = min(1 / (math.exp(rng.uniform(*map(math.log, law.inertia))) * STEPS), 1.0)
    push = math.sqrt(2 * forget)
    angle = rng.gauss(0, 1) * law.turn / STEPS
    cosine, sine = math.cos(angle), math.sin(angle)
    jumps = rng.random() * law.shakes / STEPS if rng.random() < law.shaken else 0.0
    fx, fy = rng.gauss(0, 1), rng.gauss(0, 1)
    vx, vy, px, py = fx, fy, 0.0, 0.0
    path = []
    for _ in range(STEPS):
        fx += push * rng.gauss(0, 1) - forget * fx
        fy += push * rng.gauss(0, 1) - forget * fy
        vx += follow * (fx - vx)
        vy += follow * (fy - vy)
        if rng.random() < jumps:
            vx += law.shake * rng.gauss(0, 1)
            vy += law.shake * rng.gauss(0, 1)
        fx, fy = cosine * fx - sine * fy, sine * fx + cosine * fy
        vx, vy = cosine * vx - sine * vy, sine * vx + cosine * vy
        px, py = px + vx, py + vy
        path.append((px, py))
    return path


def splatted(path: Sequence[Sequence[float]], rng: random.Random, law: Shake) -> np.ndarray:
    """One kernel from a walk: narrowed, fitted, splatted point by point, softened."""
    factor, direction = math.exp(rng.uniform(0, math.log(law.narrowing))), rng.random() * 2 * math.pi
    ux, uy = math.cos(direction), math.sin(direction)
    narrowed = []
    for x, y in path:
        along, across = x * ux + y * uy, (y * ux - x * uy) / factor
        narrowed.append((along * ux - across * uy, along * uy + across * ux))
    mx, my = statistics.fmean(x for x, _ in narrowed), statistics.fmean(y for _, y in narrowed)
    xs, ys = [x - mx for x, _ in narrowed], [y - my for _, y in narrowed]
    span = max(max(xs) - min(xs), max(ys) - min(ys))
    reach = max(*map(abs, xs), *map(abs, ys))
    scale = min((2 + 24 * math.sqrt(rng.random())) / span, (SIZE // 2 - 1) * (1 - 1e-9) / reach)
    kernel = np.zeros((SIZE, SIZE))
    for x, y in zip(xs, ys, strict=True):
        column, row = x * scale + SIZE // 2, y * scale + SIZE // 2
        left, top = int(column), int(row)
        right, below = column - left, row - top
        kernel[top, left] += (1 - right) * (1 - below)
        kernel[top, left + 1] += right * (1 - below)
        kernel[top + 1, left] += (1 - right) * below
        kernel[top + 1, left + 1] += right * below
    w = law.softness * rng.random() ** 2
    for axis in (0, 1):
        kernel = ndimage.convolve1d(kernel, [w, 1 - 2 * w, w], axis=axis, mode="constant")
    return kernel / kernel.sum()


def vector_motions(n: int) -> np.ndarray:
    rng, own = np.random.default_rng(0), random.Random(0)
    return np.stack([splatted(plain_path(rng, Shake()).tolist(), own, Shake()) for _ in range(n)])


def float_motions(n: int) -> np.ndarray:
    rng = random.Random(0)
    return np.stack([splatted(float_path(rng, Shake()), rng, Shake()) for _ in range(n)])


def philox() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(0))


def microseconds(make: Callable[[int], np.ndarray], count: int) -> float:
    """CPU time of this thread for one kernel: what other processes of the machine do is left out."""
    started = time.thread_time()
    make(count)
    return (time.thread_time() - started) / count * 1e6


@pytest.mark.quick
@pytest.mark.benchmark(group="drawing kernels")
@pytest.mark.parametrize("family", ["gaussian", "motion"])
def test_drawing(benchmark, report: Report, family: str) -> None:
    ours: Callable[[int], np.ndarray]
    if family == "gaussian":
        ours = lambda n: sample_gaussian(n, SIZE, rng=philox())  # noqa: E731
        others = {
            "loop over kernels, NumPy, same integration": plain_gaussians,
            "loop over kernels, NumPy, one point a pixel": sampled_gaussians,
        }
        np.testing.assert_allclose(plain_gaussians(64), ours(64), atol=1e-6)
    else:
        ours = lambda n: sample_motion(n, SIZE, rng=philox())  # noqa: E731
        others = {
            "same model, step by step, NumPy vectors": vector_motions,
            "same model, step by step, bare floats": float_motions,
        }
        # The same law: as many pixels lit, as concentrated.
        for statistic in (lambda k: (k > 2e-3).sum((1, 2)).mean(), lambda k: (k * k).sum((1, 2)).mean()):
            for other in others.values():
                assert statistic(other(600)) == pytest.approx(statistic(ours(4000)), rel=0.08)

    rounds = []
    for _ in range(5):
        mine = microseconds(ours, 4 * BATCH)
        rounds.append([mine, *(microseconds(other, 256) for other in others.values())])
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    ratios = [statistics.median(r[i] / r[0] for r in rounds) for i in range(len(medians))]
    names = ["ours", *others]
    report(
        f"{family} kernels, {SIZE} x {SIZE}, one core",
        ["how", "µs a kernel", "ours is faster by"],
        [[n, f"{m:.1f}", f"{r:.0f}x"] for n, m, r in zip(names, medians, ratios, strict=True)],
    )
    benchmark.extra_info["ratios"] = {f"{family} kernels": ratios[1]}
    benchmark(ours, BATCH)


@pytest.mark.benchmark(group="a whole bank")
def test_default_bank(benchmark, report: Report, tmp_path: Path) -> None:
    """200,000 kernels with codec and pictures from the command line; the peak of each process is sampled."""
    command = [sys.executable, "jobs/build_kernel_bank.py", "--output", str(tmp_path / "bank")]
    peaks: dict[str, int] = {}

    def build() -> None:
        process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL)
        tree = psutil.Process(process.pid)
        while process.poll() is None:
            for one in [tree, *tree.children(recursive=True)]:
                try:
                    memory = one.memory_info()
                    # Pages of the object store are shared by all who map them; they are counted apart.
                    name = "job" if one.pid == process.pid else one.name().split(" ")[0]
                    peaks[name] = max(peaks.get(name, 0), memory.rss)
                except psutil.Error:
                    continue
            time.sleep(0.1)
        assert process.returncode == 0

    started = time.perf_counter()
    benchmark.pedantic(build, rounds=1)
    seconds = time.perf_counter() - started
    workers = max(size for name, size in peaks.items() if name.startswith("ray::"))
    report(
        f"200,000 kernels, codec and pictures, {os.cpu_count()} cores",
        ["", "measured", "bound"],
        [
            ["seconds, Ray's start included", f"{seconds:.0f}", "90"],
            ["peak RSS of a worker, MiB", f"{workers / 2**20:.0f}", "1024"],
            ["peak RSS of the job, MiB", f"{peaks['job'] / 2**20:.0f}", "1024"],
            ["peak RSS of any other process, MiB", f"{max(peaks.values()) / 2**20:.0f}", "1024"],
        ],
    )


@pytest.mark.benchmark(group="coverage of measured motion kernels")
def test_coverage(benchmark, report: Report, shared: Path) -> None:
    """The nearest of 20,000 motion kernels, best over shifts and the 8 flips and quarter turns."""
    bank, _ = draw_range(KernelBankSpec(), "motion", 0, 20_000)
    twelve, levin = (load_kernels(shared / "data" / name) for name in ("kernels_12.mat", "Levin09.mat"))
    measured = {"USRNet benchmark k9 to k12": twelve[8:], "Levin et al. 2009, 1 to 8": levin}

    def nearest() -> list[list[str]]:
        return [
            [name, " ".join(f"{value:.2f}" for value in correlation(bank, kernels, orientations=True).max(0))]
            for name, kernels in measured.items()
        ]

    rows = benchmark.pedantic(nearest, rounds=1)
    rows.append(["k9 to k12 by USRNet's public generator (5,000 kernels)", "0.70 0.84 0.78 0.73"])
    report("correlation with the nearest of 20,000 kernels", ["measured kernels", "correlation, one each"], rows)


@pytest.mark.timeout(3600)
@pytest.mark.benchmark(group="what the codec costs the restorer")
def test_cost_of_the_codec(benchmark, report: Report, shared: Path) -> None:
    """What is lost on Set5, x2, without noise, by the published tiny USRNet given decoded kernels, in dB."""
    from pipeline.images.decode import decode_image
    from pipeline.model.weights import load_usrnet

    spec = KernelBankSpec()
    drawn = {family: draw_range(spec, family, 0, 20_000)[0] for family in ("gaussian", "motion")}
    full = KernelCodec.fit(np.concatenate(list(drawn.values())), components=SIZE**2)
    kept = KernelCodec.fit(np.concatenate(list(drawn.values())), explained_variance=0.99).components
    twelve = load_kernels(shared / "data" / "kernels_12.mat")[:, 2:-2, 2:-2]
    # Kernels that the codec was not fitted to; those of others are recentred, as the codec expects them.
    sets = {
        "bank, Gaussian": draw_range(spec, "gaussian", 50_000, 50_004)[0],
        "bank, motion": draw_range(spec, "motion", 50_000, 50_004)[0],
        "benchmark k1 to k4, isotropic": twelve[:4],
        "benchmark k5 to k8, anisotropic": twelve[4:8],
        "benchmark k9 to k12, motion": recentre(twelve[8:]),
    }
    lengths = [*LENGTHS, kept]
    net = load_usrnet(shared / "data" / "usrnet_tiny.pth")
    images = [decode_image(path.read_bytes()) for path in sorted((shared / "data" / "Set5").iterdir())]

    def restored(hr: np.ndarray, true: np.ndarray, told: np.ndarray) -> float:
        x = torch.from_numpy(hr.astype(np.float32) / 255).permute(2, 0, 1)[None]
        lr = degrade(x, torch.from_numpy(true)[None], 2)
        with torch.no_grad():
            sr = net(lr, torch.from_numpy(told)[None], 2, torch.zeros(1))
        return psnr((sr[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy(), hr, border=4)

    def losses() -> list[list[str]]:
        rows = []
        for name, kernels in sets.items():
            kernels = (kernels / kernels.sum((1, 2), keepdims=True)).astype(np.float32)
            told = [kernels, *(c.decode(c.encode(kernels)) for c in map(full.truncated, lengths))]
            values = np.array(
                [
                    [np.mean([restored(hr, true, given[i]) for i, true in enumerate(kernels)]) for hr in images]
                    for given in told
                ]
            ).mean(1)
            cells = [
                f"{kernel_db:.1f}" for kernel_db in (decoded_psnr(kernels, full.truncated(n)).mean() for n in lengths)
            ]
            rows.append(
                [name, f"{values[0]:.2f}"]
                + [f"{values[0] - value:.2f} ({db})" for value, db in zip(values[1:], cells, strict=True)]
            )
        return rows

    rows = benchmark.pedantic(losses, rounds=1)
    report(
        "dB lost by the restorer with decoded kernels (in brackets: PSNR of the decoded kernel)",
        ["kernels", "PSNR, true kernel", *(f"{n} components" for n in lengths)],
        rows,
    )
