"""The page: every number in it, one file, no reference to anything outside, and text that cannot break out."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from kernels_bank import benchmark_kernels
from pipeline.evaluation.cases import Estimate
from pipeline.evaluation.crops import Shown, best_median_worst, detail
from pipeline.evaluation.page import _bar, _gap, render
from pipeline.evaluation.protocol import PROTOCOLS
from pipeline.evaluation.row import Row
from pipeline.evaluation.summary import cells
from tests.unit.evaluation.results import result

TABLE1 = PROTOCOLS["usrnet-table1"]
IMAGES = ("<b>a&b.png", "c.png", "d.png")
BLIND = {
    "psnr_rounds": [21.0, 21.5, 21.25],
    "kernel_psnr": 40.0,
    "kernel_correlation": 0.9,
    "kernel_estimate": benchmark_kernels()[0].ravel().tolist(),
}


def rows(methods: tuple[str, ...]) -> list[Row]:
    found = []
    for kernel in range(1, 13):
        for number, image in enumerate(IMAGES):
            for place, method in enumerate(methods):
                more = {} if method != "blind" else BLIND
                value = 20.0 + kernel / 10 + number + place
                found.append(result(f"/images/{image}", kernel, method, value, **more))
    return found


def page(methods: tuple[str, ...] = ("bicubic", "blind", "nonblind")) -> str:
    about = {
        "model": "models:/blind-sr-x2/3",
        "digests": {"nonblind": "d" * 64},
        "protocol": TABLE1.model_dump(mode="json"),
        "kernels": "k" * 64,
        "kernel_count": 12,
        "images": {f"/images/{image}": "e" * 64 for image in IMAGES},
        "test_set": "images-12345678",
        "scales": [2],
        "made_from": "f" * 64,
    }
    made, picture = rows(methods), np.full((64, 64, 3), 99, np.uint8)
    estimates = {method: Estimate(picture / np.float32(255), None, []) for method in methods}
    lr, psnr = np.zeros((32, 32, 3), np.float32), dict.fromkeys(methods, 23.456)
    shown = Shown(made[0].case, picture, lr, benchmark_kernels()[0], estimates, psnr, 0, 0, 64)
    return render(about, cells(made, 12), made, {2: benchmark_kernels()}, [("best", shown)], TABLE1)


class Addresses(HTMLParser):
    """Every attribute that could make a browser fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_page_refers_to_nothing_outside_itself():
    text = page()
    parser = Addresses()
    parser.feed(text)
    assert len(parser.found) > 40
    assert all(address.startswith("data:") for address in parser.found)
    assert not re.search(r"url\(|@import|https?:|fetch\(|XMLHttpRequest", re.sub(r"data:[^\"']*", "", text))


def test_page_shows_every_mean_and_the_provenance():
    text = page()
    for kernel in range(1, 13):
        for place in range(3):
            assert f">{21 + kernel / 10 + place:.2f}<" in text
    for expected in ("blind-sr-x2", "version 3", "d" * 64, "k" * 64, "f" * 64, "e" * 64, "21.25", "0.900", "23.46"):
        assert expected in text
    assert "&lt;b&gt;a&amp;b.png" in text
    assert "<b>a&b" not in text


def test_a_model_that_is_not_blind_has_a_page_without_estimates():
    text = page(("bicubic", "bicubic-unaligned", "nonblind"))
    assert "alternation help" not in text
    assert "bicubic-unaligned" in text  # among all measures
    assert ">gain<" in text


@pytest.mark.parametrize(
    ("blind", "known", "expected"),
    [
        (26.0, 28.0, {"bicubic": 40.0, "gain blind": 20.0, "left": 20.0}),
        (23.0, 28.0, {"bicubic": 30.0, "loss": 10.0, "left": 40.0}),
        (29.0, 28.0, {"bicubic": 40.0, "gain blind": 50.0}),
    ],
)
def test_bars_say_what_is_gained_lost_and_left(blind, known, expected):
    """Bicubic 24 dB on an axis from 20 to 30."""
    parts = _bar({"bicubic": 24.0, "blind": blind, "nonblind": known}, "blind", 20.0, 30.0)
    assert {part["css"]: part["width"] for part in parts} == pytest.approx(expected)


def test_gaps_are_coloured_by_their_size():
    assert [_gap(value, gain=False)["css"] for value in (0.1, -0.29, -1.0, -4.0)] == ["good", "good", "fair", "bad"]
    assert [_gap(value, gain=True)["css"] for value in (0.1, -0.1)] == ["good", "bad"]
    assert _gap(-1.234, gain=False)["text"] == "−1.23"


def test_best_median_and_worst_are_of_different_images():
    chosen = best_median_worst(rows(("nonblind",)), "psnr_rgb")
    assert {rank: row.case.name for rank, row in chosen.items()} == dict(
        zip(("worst", "median", "best"), IMAGES, strict=True)
    )
    assert all(row.case.kernel == 7 for row in chosen.values())
    two = [r for r in rows(("nonblind",)) if r.case.name != "c.png"]
    assert [row.case.name for row in best_median_worst(two, "psnr_rgb").values()] == [IMAGES[0], "d.png"]
    (only,) = best_median_worst([r for r in two if r.case.name == "d.png"], "psnr_rgb").values()
    assert only.case.name == "d.png"


def test_detail_is_where_the_structure_is():
    image = np.zeros((90, 120, 3), np.uint8)
    image[50:70, 80:100] = np.random.default_rng(0).integers(0, 255, (20, 20, 3))
    top, left, side = detail(image, 3, 30)
    assert side == 30
    assert (top % 3, left % 3) == (0, 0)
    assert top <= 51
    assert top + side >= 69
    assert left <= 81
    assert left + side >= 99
    assert detail(image, 2, 500)[2] == 90
