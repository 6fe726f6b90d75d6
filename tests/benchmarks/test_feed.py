"""How fast samples are made: `make bench` prints each group's median and rate; ratios are read within a group.

The baseline is the field's loader: decode the whole 2K PNG, take one 96 x 96 crop, blur it with SciPy, slice, add
noise. Ours is what a data task of the feed does for the same samples. One thread each.
"""

from __future__ import annotations

import io
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from kernels_bank import sample_gaussian
from pipeline.config import DataConfig
from pipeline.data.photographs import TRAIN, copy_photographs
from pipeline.data.samples import degrade_draws, draw
from pipeline.data.tiles import cut, read_samples, write_samples
from pipeline.degrade import _direct, _fourier, degrade
from pipeline.images.decode import decode_image, decode_tile
from pipeline.images.encode import encode_png

BANK = sample_gaussian(256, 21, rng=np.random.default_rng(0))
DATA = DataConfig(shards="", bank="", patch=96, patches_per_tile=8, sigma=(0.0, 0.05))
SCALE = 2


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """A real photograph at the size of a DIV2K image, with a trace of grain so that PNG has something to do."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    folder, _ = copy_photographs(tmp_path_factory.mktemp("photographs"))
    image = decode_image((Path(folder) / next(iter(TRAIN))).read_bytes())
    large = cv2.resize(image, (2040, 1356), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    grain = np.random.default_rng(0).integers(-2, 3, large.shape, dtype=np.int16)
    return np.clip(large + grain, 0, 255).astype(np.uint8)


def rate(benchmark, samples: int) -> None:
    benchmark.extra_info["samples"] = samples
    print(f"\n{benchmark.name}: {samples / benchmark.stats.stats.median:.1f} samples/s")


@pytest.mark.quick
@pytest.mark.benchmark(group="samples from a 2K photograph", timer=time.process_time)
def test_field_loader(benchmark, photo: np.ndarray) -> None:
    png, random = encode_png(photo), np.random.default_rng(0)

    def one_sample() -> np.ndarray:
        image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB)
        top, left = random.integers(1356 - 96), random.integers(2040 - 96)
        crop = image[top : top + 96, left : left + 96].astype(np.float32) / 255
        kernel = BANK[random.integers(len(BANK))][..., None]
        lr = ndimage.convolve(crop, kernel, mode="wrap")[::SCALE, ::SCALE]
        return lr + random.standard_normal(lr.shape).astype(np.float32) * np.float32(0.02)

    benchmark(one_sample)
    rate(benchmark, 1)


@pytest.mark.quick
@pytest.mark.benchmark(group="samples from a 2K photograph", timer=time.process_time)
def test_our_feed_task(benchmark, photo: np.ndarray) -> None:
    stream = io.BytesIO()
    write_samples(cut(photo, 480, name="a", sha256="0" * 64), stream)
    tar = stream.getvalue()

    def one_shard() -> int:
        draws = [
            draw(pixels, tile.key, patch, epoch=0, seed=0, data=DATA, bank=BANK)
            for tile in read_samples(tar)
            for pixels in [decode_tile(tile.image)]
            for patch in range(DATA.patches_per_tile)
        ]
        for first in range(0, len(draws), 16):
            degrade_draws(draws[first : first + 16], SCALE, "none")
        return len(draws)

    samples = benchmark(one_shard)
    rate(benchmark, samples)


def patches() -> tuple[torch.Tensor, torch.Tensor]:
    hr = torch.rand(16, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    return hr, torch.from_numpy(BANK[:16])


@pytest.mark.quick
@pytest.mark.benchmark(group="degradation of 16 patches", timer=time.process_time)
def test_scipy_per_patch(benchmark) -> None:
    hr, kernels = (tensor.numpy() for tensor in patches())
    benchmark(
        lambda: [ndimage.convolve(x, k[None], mode="wrap")[:, ::2, ::2] for x, k in zip(hr, kernels, strict=True)]
    )


@pytest.mark.quick
@pytest.mark.benchmark(group="degradation of 16 patches", timer=time.process_time)
def test_our_degrade(benchmark) -> None:
    hr, kernels = patches()
    torch.set_num_threads(1)
    benchmark(degrade, hr, kernels, 2)


def png(level: int, kind: int) -> list[int]:
    return [cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_FILTER, kind]


CODECS = {
    "png level 1 adaptive": (".png", png(1, cv2.IMWRITE_PNG_ALL_FILTERS)),
    "png level 1 up": (".png", png(1, cv2.IMWRITE_PNG_FILTER_UP)),
    "png level 3 adaptive": (".png", png(3, cv2.IMWRITE_PNG_ALL_FILTERS)),
    "png level 3 none": (".png", png(3, cv2.IMWRITE_PNG_FILTER_NONE)),
    "png level 3 sub": (".png", png(3, cv2.IMWRITE_PNG_FILTER_SUB)),
    "png level 3 up (ours)": (".png", png(3, cv2.IMWRITE_PNG_FILTER_UP)),
    "png level 3 paeth": (".png", png(3, cv2.IMWRITE_PNG_FILTER_PAETH)),
    "png level 9 up": (".png", png(9, cv2.IMWRITE_PNG_FILTER_UP)),
    "webp lossless": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
    "raw (bmp)": (".bmp", []),
}


@pytest.mark.benchmark(group="decoding 480 x 480 tiles of four photographs")
@pytest.mark.parametrize("codec", CODECS)
def test_tile_codec(benchmark, tmp_path: Path, codec: str) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    folder, _ = copy_photographs(tmp_path)
    tiles = [np.ascontiguousarray(decode_image(f.read_bytes())[:400, :480]) for f in sorted(folder.iterdir())]
    extension, options = CODECS[codec]
    started = time.perf_counter()
    files = [cv2.imencode(extension, tile, options)[1] for tile in tiles]
    encoding = time.perf_counter() - started
    decoded = benchmark(lambda: [cv2.imdecode(file, cv2.IMREAD_COLOR) for file in files])
    assert all(np.array_equal(a, b) for a, b in zip(decoded, tiles, strict=True))
    raw = sum(tile.size for tile in tiles)
    decoding, megapixels = benchmark.stats.stats.median, raw / 3e6
    print(
        f"\n{codec}: {sum(file.size for file in files) / raw:.3f} of the raw bytes; a megapixel decodes in "
        f"{decoding * 1e3 / megapixels:.1f} ms, encodes in {encoding * 1e3 / megapixels:.0f} ms"
    )


@pytest.mark.benchmark(group="16 patches of 96 x 96")
@pytest.mark.parametrize("method", ["direct", "fourier"])
@pytest.mark.parametrize("size", [11, 21, 31])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_direct_or_fourier(benchmark, scale: int, size: int, method: str) -> None:
    """Where the crossover lies that `degrade` has in it."""
    torch.set_num_threads(1)
    hr = torch.rand(16, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    kernels = torch.from_numpy(sample_gaussian(16, size, rng=np.random.default_rng(0)))
    benchmark(_direct if method == "direct" else _fourier, hr, kernels, scale)
    print(f"\nx{scale} k{size} {method}: {benchmark.stats.stats.median / 16 * 1e6:.0f} us a patch")
