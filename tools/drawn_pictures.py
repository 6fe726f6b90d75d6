"""Draw random pictures of kinds that blind restorers spoil: text, screens, line art, patterns, lamps, skies.

`tools/fit_trust.py` uses them for training. They differ from the pictures of `tests/helpers/hard_pictures.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Random = np.random.Generator


def text(random: Random, side: int) -> np.ndarray:
    """Draw lines of words in one size and two colours."""
    ink, paper = ((0, 0, 0), (255, 255, 255)) if random.random() < 0.4 else (_colour(random), _colour(random))
    size, image = int(random.integers(9, 36)), Image.new("RGB", (side, side), paper)
    pen, font, top = ImageDraw.Draw(image), ImageFont.load_default(size), int(random.integers(6))
    while top < side:
        words = ["".join(map(chr, random.integers(97, 123, random.integers(2, 9)))) for _ in range(14)]
        pen.text((int(random.integers(9)), top), " ".join(words), fill=ink, font=font)
        top += int(size * random.uniform(1.1, 1.6)) + 1
    return np.asarray(image)


def screen(random: Random, side: int) -> np.ndarray:
    """Draw rectangles with labels, one over another."""
    image = Image.new("RGB", (side, side), _colour(random))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(int(random.integers(9, 15)))
    for _ in range(random.integers(4, 16)):
        (left, top), (width, height) = random.integers(0, side, 2).tolist(), random.integers(6, side, 2).tolist()
        outline = _colour(random) if random.random() < 0.5 else None
        pen.rectangle((left, top, left + width, top + height), fill=_colour(random), outline=outline)
        if random.random() < 0.6:
            pen.text((left + 3, top + 2), f"Label {random.integers(1000)}", fill=_colour(random), font=font)
    return np.asarray(image)


def lines(random: Random, side: int) -> np.ndarray:
    """Draw lines, circles and ellipses, one to three pixels wide."""
    dark = random.random() < 0.2
    image = np.full((side, side, 3), 0 if dark else 255, np.uint8)
    for _ in range(random.integers(4, 30)):
        ink = _colour(random) if random.random() < 0.4 else (255 if dark else 0,) * 3
        start, end = random.integers(0, side, (2, 2)).tolist()
        axes, width = random.integers(3, side // 2, 2).tolist(), int(random.integers(1, 4))
        match random.integers(3):
            case 0:
                cv2.line(image, start, end, ink, width, cv2.LINE_AA)
            case 1:
                cv2.circle(image, start, axes[0], ink, width, cv2.LINE_AA)
            case _:
                cv2.ellipse(image, start, axes, int(random.integers(360)), 0, 360, ink, width, cv2.LINE_AA)
    return image


def pattern(random: Random, side: int) -> np.ndarray:
    """Draw a checkerboard, stripes, waves or dots, turned or not."""
    down, across = np.mgrid[:side, :side].astype(float)
    angle = random.uniform(0, np.pi) if random.random() < 0.5 else 0.0
    u, v = across * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - across * np.sin(angle)
    period, other = random.uniform(2, 24, 2)
    match random.integers(4):
        case 0:
            weight = (u // period + v // period) % 2
        case 1:
            weight = (u // period) % 2
        case 2:
            weight = 0.5 + 0.5 * np.sin(2 * np.pi * u / period) * np.sin(2 * np.pi * v / other)
        case _:
            far = np.hypot(u % period - period / 2, v % period - period / 2)
            weight = (far < period * random.uniform(0.15, 0.5)).astype(float)
    low, high = (np.array(_colour(random) if random.random() < 0.5 else (end,) * 3, float) for end in (0, 255))
    return np.asarray((low + (high - low) * weight[..., None]).astype(np.uint8))


def night(random: Random, side: int) -> np.ndarray:
    """Draw lamps with haloes on black, most of them clipped."""
    image = np.full((side, side, 3), random.uniform(0, 20))
    down, across = np.mgrid[:side, :side]
    for _ in range(random.integers(2, 40)):
        y, x = random.uniform(0, side, 2)
        far = np.hypot(down - y, across - x)
        match random.integers(3):
            case 0:
                halo = (far / random.uniform(0.5, 4) + 1) ** -random.uniform(1.5, 4)
            case 1:
                halo = np.exp(-(far**2) / 2 / random.uniform(0.6, 6) ** 2)
            case _:
                halo = (far < random.uniform(1, 8)).astype(float)
        image += (10 ** random.uniform(1.5, 4.5) * halo)[..., None] * random.uniform(0.3, 1, 3)
    return np.asarray(image.clip(0, 255).astype(np.uint8))


def smooth(random: Random, side: int) -> np.ndarray:
    """Draw a sky: a few colours that fade into each other."""
    few = int(random.integers(2, 6))
    low, high = (0, 255) if random.random() < 0.5 else (90, 160)
    colours = random.uniform(low, high, (few, few, 3)).astype(np.float32)
    large = cv2.resize(colours, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.asarray(large.clip(0, 255).astype(np.uint8))


def noise(random: Random, side: int) -> np.ndarray:
    """Draw nothing but noise around a grey, fine or coarse."""
    level, channels = 10 ** random.uniform(0, 1.7), 3 if random.random() < 0.6 else 1
    image = random.uniform(40, 215) + level * random.standard_normal((side, side, channels))
    if random.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), random.uniform(0.4, 1.5)).reshape(side, side, -1)
    return np.broadcast_to(image, (side, side, 3)).clip(0, 255).astype(np.uint8)


def flat(random: Random, side: int) -> np.ndarray:
    """Draw one colour."""
    return np.full((side, side, 3), _colour(random), np.uint8)


def _colour(random: Random) -> tuple[int, int, int]:
    red, green, blue = random.integers(0, 256, 3).tolist()
    return red, green, blue


# Share of each kind; the rest are photographs.
SHARES: dict[Callable[[Random, int], np.ndarray], float] = {
    text: 0.08,
    screen: 0.06,
    lines: 0.06,
    pattern: 0.06,
    night: 0.06,
    smooth: 0.04,
    noise: 0.05,
    flat: 0.01,
}
