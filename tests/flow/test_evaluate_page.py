"""The report of a real evaluation, opened from disk in a real browser, at the width of a phone and of a desk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from kernels_bank import sample_gaussian
from pipeline.evaluation.evaluate import run_evaluation
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.images.decode import decode_image
from pipeline.images.encode import encode_png
from tests.flow.chromium import Page, chromium, find_chromium

pytestmark = pytest.mark.flow
WIDTHS = {"phone": (390, 844), "desk": (1400, 900)}
# What a page must not do: ask for anything but itself and what is inside it, or complain.
OUTSIDE = "Network.requestWillBeSent"
COMPLAINTS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with chromium(program) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(
    cluster: None, photographs: Path, model_folder: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Three images, two kernels, one noise-free and one noisy level, a second model beside the first."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "images").mkdir()
    for name in ("coffee.png", "china.jpg", "flower.jpg"):
        image = decode_image((photographs / name).read_bytes())[100:196, 100:204]
        (folder / "images" / name).with_suffix(".png").write_bytes(encode_png(image))
    np.save(folder / "kernels.npy", sample_gaussian(2, 11, rng=np.random.default_rng(0)))
    (folder / "mine.yaml").write_text("name: mine\nsigmas: {2: [0.0, 0.01]}\n")
    settings = EvaluationSettings(
        model=str(model_folder(0)),
        images=str(folder / "images"),
        kernels=str(folder / "kernels.npy"),
        protocol=str(folder / "mine.yaml"),
        compare=(str(model_folder(1)),),
    )
    run_evaluation(settings, folder / "out")
    assert (folder / "out" / "report.html").stat().st_size < 3e6
    return folder / "out" / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("where", WIDTHS)
def test_it_opens_from_disk_without_network_or_complaint_and_fits(page, report, where, scheme):
    width, height = WIDTHS[where]
    page.open(report, width, height, scheme)
    addresses = [event["params"]["request"]["url"] for event in page.events if event.get("method") == OUTSIDE]
    assert [address for address in addresses if not address.startswith("data:")] == [report.absolute().as_uri()]
    assert [event for event in page.events if event.get("method") in COMPLAINTS] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the window"
    # Pictures: 3 cases of LR, bicubic, blind, non-blind, the compared model and HR; kernels; all of them decoded.
    sizes = page.evaluate(
        "Promise.all([...document.images].filter(i => i.src).map(i => i.decode().then(() => i.naturalWidth)))"
    )
    assert page.evaluate("document.querySelectorAll('.tiles img').length") == 18
    assert len(sizes) > 18
    assert min(sizes) >= 11
    red, green, blue = cv2.mean(cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR))[:3]
    assert (red + green + blue) / 3 > 160 if scheme == "light" else (red + green + blue) / 3 < 90


def test_metrics_are_chosen(page, report):
    page.open(report, 1400, 900, "light")
    shown = "[...document.querySelectorAll('[data-metric]')].filter(t => t.offsetHeight).map(t => t.dataset.metric)"
    assert page.evaluate(shown) == ["psnr_rgb"] * 2
    page.evaluate("document.querySelector('[value=psnr_y]').click()")
    assert page.evaluate(shown) == ["psnr_y"] * 2


@pytest.mark.parametrize("where", WIDTHS)
def test_pictures_are_enlarged_flipped_and_moved(page, report, where):
    width, height = WIDTHS[where]
    page.open(report, width, height, "light")
    page.evaluate("document.querySelector('.tiles button:nth-child(2)').scrollIntoView({block: 'center'})")
    x, y = page.evaluate(
        "(r => [r.x + r.width / 2, r.y + r.height / 2])"
        "(document.querySelector('.tiles button:nth-child(2) img').getBoundingClientRect())"
    )
    page.click(x, y)
    assert page.evaluate("document.querySelector('#viewer').open")
    pressed = "document.querySelector('#methods [aria-pressed=true]').textContent"
    scale = "new DOMMatrix(getComputedStyle(document.querySelector('#stage img')).transform).a"
    offset = "new DOMMatrix(getComputedStyle(document.querySelector('#stage img')).transform).e"
    source = "document.querySelector('#stage img').src"
    assert page.evaluate(pressed) == "bicubic"
    assert page.evaluate(scale) == 1

    # The point under the wheel stays where it is.
    box = "(r => [r.x, r.width])(document.querySelector('#stage img').getBoundingClientRect())"
    at = width / 2 + 40
    left, wide = page.evaluate(box)
    place = (at - left) / wide
    page.wheel(at, height / 3, -400)
    left, wide = page.evaluate(box)
    assert page.evaluate(scale) == pytest.approx(np.e, rel=0.01)
    assert (at - left) / wide == pytest.approx(place, abs=0.01)

    before, moved = page.evaluate(source), page.evaluate(offset)
    page.press("ArrowRight")
    assert page.evaluate(pressed) == "blind"
    assert page.evaluate(source) != before
    assert page.evaluate(offset) == moved, "flipping must not move the picture"

    for kind, to in (("mousePressed", at), ("mouseMoved", at + 30), ("mouseReleased", at + 30)):
        page.call("Input.dispatchMouseEvent", type=kind, x=to, y=height / 3, button="left", buttons=1)
    assert page.evaluate(offset) == pytest.approx(moved + 30, abs=1)
    page.evaluate("document.querySelector('#close').click()")
    assert not page.evaluate("document.querySelector('#viewer').open")
