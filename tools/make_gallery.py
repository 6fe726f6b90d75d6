"""Restore twelve real photographs as people have them, and write docs/gallery.md with its pictures.

python tools/make_gallery.py

The photographs ship inside scikit-image and scikit-learn. Nothing is chosen by its result: failures stay.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import skimage
import sklearn
import torch
from PIL import Image, ImageDraw, ImageFont

from kernels_bank.runtime.progress import Progress
from pipeline.data.pictures import kernel_picture, to_uint8
from pipeline.images.decode import decode_photograph
from pipeline.inference import Restored, Restorer
from pipeline.model.upsample import upsample
from pipeline.shipped import FOR_PHOTOGRAPHS

DOCS = Path(__file__).parents[1] / "docs"
_FOLDERS = {
    "skimage": Path(skimage.__file__).parent / "data",
    "sklearn": Path(sklearn.__file__).parent / "datasets/images",
}
_CELL, _KERNEL, _GAP, _PAGE = 216, 96, 6, 4  # HR pixels of cell, kernel and gap; photographs per picture


class Stored(NamedTuple):
    """Hold a picture as stored in its file."""

    pixels: np.ndarray  # (h, w, 3) uint8
    error: float = 0.0  # error of the file as known from the file itself, [0, 1] scale


class Shot(NamedTuple):
    """Describe a part of a photograph and its degradation."""

    file: str
    what: str  # description for the reader
    scale: int
    top: int  # top of the shown part in the photograph
    left: int
    made: Callable[[np.ndarray, int], Stored]
    package: str = "skimage"
    truth: bool = True  # the photograph before it was degraded is known


def as_it_is(image: np.ndarray, scale: int) -> Stored:
    """Leave the photograph unchanged."""
    return Stored(image)


def camera(image: np.ndarray, scale: int) -> Stored:
    """Reduce by area, add noise of 2 grey levels, store as JPEG 92."""
    small = _area(image, scale) + 2 * np.random.default_rng(0).standard_normal(_area(image, scale).shape)
    return _jpeg(small, 92)


def web(image: np.ndarray, scale: int) -> Stored:
    """Reduce by an antialiased bicubic filter, store as JPEG 85."""
    return _jpeg(_bicubic(image, scale), 85)


def messenger(image: np.ndarray, scale: int) -> Stored:
    """Store as JPEG 80, reduce by area, store as JPEG 70."""
    return _jpeg(_area(_jpeg(image, 80).pixels, scale), 70)


def soft(image: np.ndarray, scale: int) -> Stored:
    """Blur by a lens out of focus, reduce by area, store in 8 bit."""
    blurred = cv2.GaussianBlur(image, (0, 0), 0.8 * scale)
    return Stored(_area(blurred, scale).round().astype(np.uint8))


def reduced(image: np.ndarray, scale: int) -> Stored:
    """Reduce by an antialiased bicubic filter, store in 8 bit."""
    return Stored(_bicubic(image, scale).round().clip(0, 255).astype(np.uint8))


SHOTS = (
    Shot("astronaut.png", "web site: bicubic, JPEG 85", 2, 20, 120, web),
    Shot("chelsea.png", "camera: area, noise, JPEG 92", 2, 60, 90, camera),
    Shot("coffee.png", "out of focus, 8 bit", 2, 100, 190, soft),
    Shot("rocket.jpg", "messenger: JPEG 80, reduced, JPEG 70", 2, 120, 250, messenger),
    Shot("china.jpg", "web site: bicubic, JPEG 85", 2, 60, 130, web, "sklearn"),
    Shot("flower.jpg", "out of focus, 8 bit", 4, 60, 200, soft, "sklearn"),
    Shot("motorcycle_left.png", "camera: area, noise, JPEG 92", 2, 140, 230, camera),
    Shot("hubble_deep_field.jpg", "bicubic, 8 bit", 4, 300, 420, reduced),
    Shot("camera.png", "web site: bicubic, JPEG 85", 2, 60, 150, web),
    Shot("coins.png", "bicubic, 8 bit", 4, 30, 60, reduced),
    Shot("moon.png", "as it is", 2, 180, 200, as_it_is, truth=False),
    Shot("clock_motion.png", "as it is: a moving camera", 2, 40, 120, as_it_is, truth=False),
)


def main() -> None:
    """Restore, draw and write."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows, lines = [], []
    with Progress("gallery", total=len(SHOTS), unit="photograph") as bar:
        for number, shot in enumerate(SHOTS, 1):
            row, line = _row(shot, number)
            rows.append(row)
            lines.append(line)
            bar.advance()
    names = []
    for first in range(0, len(rows), _PAGE):
        name = f"gallery-{first // _PAGE + 1}.jpg"
        Image.fromarray(np.concatenate(rows[first : first + _PAGE])).save(DOCS / "pictures" / name, quality=88)
        names.append(name)
    (DOCS / "gallery.md").write_text(_page(names, lines), encoding="utf-8")


def _row(shot: Shot, number: int) -> tuple[np.ndarray, str]:
    """Return the strip of one photograph, and its line in the table."""
    data = (_FOLDERS[shot.package] / shot.file).read_bytes()
    pixels = decode_photograph(data).pixels
    whole = np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels[..., :3]
    height, width = (side // shot.scale * shot.scale for side in whole.shape[:2])
    lr, error = shot.made(whole[:height, :width], shot.scale)
    restored = Restorer.load(FOR_PHOTOGRAPHS).restore(lr, shot.scale, file_error=error)
    planes = torch.from_numpy(lr.copy()).permute(2, 0, 1)[None].float() / 255
    plain, bicubic = (to_uint8(upsample(planes, shot.scale, mode, "centre")[0]) for mode in ("nearest", "bicubic"))
    # The shown part if the photograph was degraded; otherwise the same part of its result.
    places = [side * (1 if shot.truth else shot.scale) for side in (shot.top, shot.left)]
    cells = [_cut(image, *places) for image in (plain, bicubic, restored.image)]
    inset = np.full((_CELL, _KERNEL, 3), 255, np.uint8)
    inset[:_KERNEL] = cv2.resize(kernel_picture(restored.kernel), (_KERNEL, _KERNEL), interpolation=cv2.INTER_NEAREST)
    gap = np.full((_CELL, _GAP, 3), 255, np.uint8)
    strip = np.concatenate([cells[0], gap, cells[1], gap, cells[2], gap, inset], 1)
    figures = [
        f"{_psnr(image, whole[:height, :width]):.2f}" if shot.truth else "" for image in (bicubic, restored.image)
    ]
    title = f"{number}. {shot.file}, {shot.what}, x{shot.scale}"
    return np.concatenate((_title(title, strip.shape[1]), strip)), _line(shot, number, figures, restored)


def _line(shot: Shot, number: int, figures: list[str], restored: Restored) -> str:
    return (
        f"| {number} | {shot.file} | {shot.what} | x{shot.scale} | {' | '.join(figures)} | {restored.sigma * 255:.1f} "
        f"| {restored.trust:.2f} |"
    )


def _title(text: str, width: int) -> np.ndarray:
    image = Image.new("RGB", (width, 22), "white")
    ImageDraw.Draw(image).text((2, 4), text, fill="black", font=ImageFont.load_default(13))
    return np.asarray(image)


def _cut(image: np.ndarray, top: int, left: int) -> np.ndarray:
    top, left = min(top, image.shape[0] - _CELL), min(left, image.shape[1] - _CELL)
    return image[top : top + _CELL, left : left + _CELL, :3]


def _psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Return the RGB PSNR without a border of 8 pixels."""
    error = (image[8:-8, 8:-8].astype(np.float64) - truth[8:-8, 8:-8]) / 255
    return float(-10 * np.log10(np.square(error).mean()))


def _area(image: np.ndarray, scale: int) -> np.ndarray:
    small: np.ndarray = cv2.resize(
        image.astype(np.float32), None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA
    )
    return small


def _bicubic(image: np.ndarray, scale: int) -> np.ndarray:
    size = (image.shape[1] // scale, image.shape[0] // scale)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), np.float32)


def _jpeg(image: np.ndarray, quality: int) -> Stored:
    buffer = io.BytesIO()
    Image.fromarray(image.round().clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    photograph = decode_photograph(buffer.getvalue())
    return Stored(photograph.pixels, photograph.file_error)


def _page(pictures: list[str], lines: list[str]) -> str:
    head = """# Gallery

Twelve photographs that ship inside scikit-image and scikit-learn, as they are and as cameras, web sites and messengers
store them: input | bicubic | restored | kernel, by the models that `jobs/restore.py` takes. They were chosen before
they were restored, and failures stay. Made by `python tools/make_gallery.py`.
"""
    shown = "\n\n".join(f"![{name}](pictures/{name})" for name in pictures)
    table = [
        "| | file | what happened to it | scale | bicubic, dB | restored, dB | noise told, of 255 | trusted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return f"{head}\n{shown}\n\n" + "\n".join([*table, *lines]) + "\n"


if __name__ == "__main__":
    main()
