"""Pictures that blind restorers spoil: text, line art, screens, clipped lights, smooth and small ones, noise."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.images.decode import decode_photograph


class Hard(NamedTuple):
    """Hold a picture and what a person has of it."""

    name: str
    hr: np.ndarray  # (s*h, s*w, 3) uint8
    lr: np.ndarray  # (h, w, 3) uint8
    scale: int
    file_error: float = 0.0  # what its file tells of its own error, [0, 1] scale


def text(side: int, size: int = 13) -> np.ndarray:
    """Black words on white."""
    image = Image.new("RGB", (side, side), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for row in range(side // (size + 4)):
        pen.text((4, row * (size + 4)), f"{row} the quick brown fox jumps over 1234567890", fill="black", font=font)
    return np.asarray(image)


def screen(side: int) -> np.ndarray:
    """A window with a title, buttons and a list, on a flat desktop."""
    image = Image.new("RGB", (side, side), (32, 96, 140))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    pen.rectangle((10, 10, side - 12, side - 14), fill=(240, 240, 240), outline=(90, 90, 90))
    pen.rectangle((10, 10, side - 12, 28), fill=(60, 60, 70))
    pen.text((16, 12), "Untitled document", fill="white", font=font)
    for row in range(6):
        fill = (204, 228, 247) if row == 2 else (255, 255, 255)
        pen.rectangle((20, 38 + 18 * row, side - 24, 54 + 18 * row), fill=fill, outline=(200, 200, 200))
        pen.text((24, 39 + 18 * row), f"file_{row}.txt    {17 * row} KB", fill=(20, 20, 20), font=font)
    return np.asarray(image)


def lines(side: int) -> np.ndarray:
    """Line art: circles and rays, one pixel wide."""
    image = np.full((side, side, 3), 255, np.uint8)
    middle = (side // 2, side // 2)
    for radius in range(8, side // 2, 9):
        cv2.circle(image, middle, radius, (0, 0, 0), 1, cv2.LINE_AA)
    for angle in np.linspace(0, np.pi, 13):
        end = (int(middle[0] + side / 2 * np.cos(angle)), int(middle[1] + side / 2 * np.sin(angle)))
        cv2.line(image, middle, end, (160, 0, 0), 1, cv2.LINE_AA)
    return image


def board(side: int, cell: int) -> np.ndarray:
    """A checkerboard."""
    place = np.arange(side) // cell
    return np.repeat((((place[:, None] + place) % 2) * 255).astype(np.uint8)[..., None], 3, 2)


def smooth(side: int) -> np.ndarray:
    """Sky: a gradient of few grey levels, no edge."""
    down, across = np.mgrid[:side, :side] / side
    return np.stack([90 + 60 * down, 140 + 50 * down + 8 * np.sin(5 * across), 220 - 20 * down], -1).astype(np.uint8)


def lights(side: int) -> np.ndarray:
    """Night: clipped lamps with haloes on black."""
    random, image = np.random.default_rng(3), np.zeros((side, side, 3), np.float32)
    for _ in range(14):
        x, y = random.uniform(0, side, 2)
        far = np.hypot(np.arange(side)[:, None] - y, np.arange(side) - x)
        image += (40000 / (far + 2) ** 2.2)[..., None] * random.uniform(0.3, 1, 3)
    return image.clip(0, 255).astype(np.uint8)


def noise(side: int, sigma: float) -> np.ndarray:
    """Nothing but noise around grey."""
    return (128 + sigma * np.random.default_rng(1).standard_normal((side, side, 3))).clip(0, 255).astype(np.uint8)


def flat(side: int) -> np.ndarray:
    """One colour."""
    return np.full((side, side, 3), (40, 120, 200), np.uint8)


def photograph(name: str, top: int, left: int, side: int) -> np.ndarray:
    """A cut of one of the photographs that scikit-image ships."""
    from skimage import data

    image = getattr(data, name)()
    image = np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image[..., :3]
    return np.ascontiguousarray(image[top : top + side, left : left + side])


PICTURES: dict[str, Callable[[int], np.ndarray]] = {
    "text": text,
    "large text": lambda side: text(side, 25),
    "screen": screen,
    "lines": lines,
    "board of 4": lambda side: board(side, 4),
    "board of 12": lambda side: board(side, 12),
    "smooth": smooth,
    "lights": lights,
    "noise": lambda side: noise(side, 25),
    "faint noise": lambda side: noise(side, 2),
    "flat": flat,
    "astronaut": lambda side: photograph("astronaut", 20, 150, side),
    "coffee": lambda side: photograph("coffee", 60, 180, side),
    "cat": lambda side: photograph("chelsea", 40, 120, side),
    "moon": lambda side: photograph("moon", 200, 200, side),
    "page": lambda side: photograph("page", 4, 20, side),
}


def area(hr: np.ndarray, scale: int) -> np.ndarray:
    """A web site's or a camera's reduction."""
    return cv2.resize(hr, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)


def bicubic(hr: np.ndarray, scale: int) -> np.ndarray:
    """The reduction of image programs."""
    size = (hr.shape[1] // scale, hr.shape[0] // scale)
    return np.asarray(Image.fromarray(hr).resize(size, Image.Resampling.BICUBIC))


def jpeg(image: np.ndarray, quality: int) -> tuple[np.ndarray, float]:
    """Through a JPEG file: the pixels, and what the file tells of their error."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    photograph = decode_photograph(buffer.getvalue())
    return photograph.pixels, photograph.file_error


def hard_pictures() -> Iterator[Hard]:
    """Make the 54 pictures: each reduced at x2 and x4, a few of them as JPEGs, and some very small ones."""
    for index, (name, make) in enumerate(PICTURES.items()):
        for scale in (2, 4):
            hr = make(184)
            reduce = (area, bicubic)[(index + scale // 2) % 2]
            yield Hard(f"{name}, {reduce.__name__} x{scale}", hr, reduce(hr, scale), scale)
    for name in ("text", "screen", "lights", "astronaut", "cat", "page"):
        for quality in (30, 75):
            hr = PICTURES[name](184)
            pixels, error = jpeg(area(hr, 2), quality)
            yield Hard(f"{name}, JPEG {quality} x2", hr, pixels, 2, error)
    for name in ("astronaut", "coffee", "cat", "moon", "text"):
        for scale in (2, 4):
            hr = PICTURES[name](64)
            yield Hard(f"{name}, 64 x 64, x{scale}", hr, bicubic(hr, scale), scale)
