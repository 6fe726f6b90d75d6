"""A real Ray Serve over real HTTP: the queue, hot swap on promote, a clean end; its page in a real browser."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.images.decode import decode_image, decode_photograph
from pipeline.images.encode import encode_png
from pipeline.inference import Restorer
from tests.flow.chromium import Page, chromium, find_chromium
from tests.flow.conftest import REPO
from tests.helpers.events import parse
from tests.helpers.processes import titled
from tests.helpers.servers import free_port

pytestmark = pytest.mark.flow
NAME = "served"
WIDTHS = {"phone": (390, 844), "desk": (1280, 860)}


@dataclass
class Server:
    """A running jobs/serve.py and the registry that it follows."""

    url: str
    process: subprocess.Popen
    store: str
    log: Path

    def health(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/healthz", timeout=60) as answer:
            return json.load(answer)

    def post(self, target: str, body: bytes) -> tuple[int, Any, bytes]:
        try:
            with urllib.request.urlopen(f"{self.url}{target}", data=body, timeout=120) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while not condition(found := self.health()):
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        return found


@pytest.fixture(scope="module")
def versions(empty_store: Path, model_folder: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry on SQLite with three versions, the first being champion and the third's weights changed since."""
    from pipeline.registry import versions
    from pipeline.tracking import runs

    folder = tmp_path_factory.mktemp("registry")
    store = f"sqlite:///{shutil.copy(empty_store, folder / 'mlflow.db')}"
    for number in range(3):
        run = runs.open_run("serve", "a", store, {"data": {"sigma": [0.0, 0.02]}}, {}, key=f"serve{number}")
        runs.finish(run, "FINISHED")
        versions.register(run, model_folder(number), NAME, "candidate", {}, {"shards": "s" * 64})
    third = (model_folder(2) / "weights.safetensors").read_bytes()
    (stored,) = [path for path in folder.rglob("weights.safetensors") if path.read_bytes() == third]
    stored.write_bytes(third[:-1] + b"!")
    point_at(store, 1)
    return store


def point_at(store: str, version: int) -> None:
    from pipeline.tracking.store import client

    client(store).set_registered_model_alias(NAME, "champion", str(version))


@pytest.fixture(scope="module")
def server(versions: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    command = [sys.executable, str(REPO / "jobs" / "serve.py"), "--model", f"models:/{NAME}@champion"]
    command += ["--port", str(port), "--poll", "0.5", "--queue", "1"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": versions, "XDG_CACHE_HOME": str(folder / "cache")}
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        environment.pop(name, None)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, start_new_session=True, stdout=log, stderr=log)
    found = Server(f"http://127.0.0.1:{port}", process, versions, folder / "log")
    try:
        deadline = time.monotonic() + 180
        while f"at http://127.0.0.1:{port}" not in found.log.read_text():
            assert process.poll() is None, found.log.read_text()
            assert time.monotonic() < deadline, found.log.read_text()
            time.sleep(0.2)
        yield found
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, found.log.read_text()
        left = psutil.wait_procs(family, timeout=20)[1]
        assert left == [], "processes are left"
        assert "Traceback" not in found.log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def photograph(photographs: Path) -> np.ndarray:
    return decode_image((photographs / "coffee.png").read_bytes())[100:164, 100:172]


@pytest.fixture(scope="module")
def large(photographs: Path) -> np.ndarray:
    """Restoring it takes much longer than stopping that; wider than high."""
    return np.tile(decode_image((photographs / "coffee.png").read_bytes()), (4, 4, 1))[:1200, :1600]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with chromium(program) as opened:
        yield opened


def test_the_answer_is_the_restorers_own(server, photograph, model_folder):
    status, headers, body = server.post("/restore?sigma=0.01", encode_png(photograph))
    assert status == 200
    expected = Restorer.load(model_folder(0), precision=headers["x-precision"]).restore(photograph, 2, 0.01)
    difference = decode_photograph(body).pixels.astype(int) - expected.image
    assert np.abs(difference).max() <= 1  # the number of threads decides the last bit
    assert headers["x-model"] == f"models:/{NAME}/1"
    assert server.health()["alias"] == f"models:/{NAME}@champion"


def test_more_requests_than_places_are_sent_away(server, photographs):
    image = encode_png(decode_image((photographs / "coffee.png").read_bytes())[:256, :256])
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda _: server.post("/restore?sigma=0", image), range(6)))
    statuses = [status for status, _, _ in replies]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 2
    for status, headers, body in replies:
        if status == 429:
            assert int(headers["retry-after"]) >= 1
            assert "try again" in json.loads(body)["error"]
    assert server.health()["places"] == {"taken": 0, "most": 2}


def test_size_limits_hold_through_the_proxy(server):
    host = server.url.removeprefix("http://")
    announced = http.client.HTTPConnection(host, timeout=60)
    announced.putrequest("POST", "/restore")
    announced.putheader("Content-Length", str(2**40))
    announced.endheaders()
    assert announced.getresponse().status == 413  # before a byte of it was sent
    announced.close()
    chunked = http.client.HTTPConnection(host, timeout=60)
    chunked.request("POST", "/restore", body=(bytes(2**20) for _ in range(100)), encode_chunked=True)
    assert chunked.getresponse().status == 413  # after all was sent, without a reset
    chunked.close()
    assert server.health()["places"]["taken"] == 0


def test_slow_uploads_keep_nobody_out_and_monitors_are_answered(server, photograph):
    host, port = server.url.removeprefix("http://").split(":")
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(4)]
        for connection in slow:
            connection.sendall(b"POST /restore HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\nx")
        other = http.client.HTTPConnection(host, int(port), timeout=60, source_address=("127.0.0.2", 0))
        other.request("POST", "/restore?sigma=0", encode_png(photograph))
        assert other.getresponse().status == 200
        for method, target in (("HEAD", "/"), ("HEAD", "/healthz"), ("OPTIONS", "/restore")):
            monitor = http.client.HTTPConnection(host, int(port), timeout=60)
            monitor.request(method, target, headers={"X-Request-Timeout-Seconds": "0.0001"})
            answer = monitor.getresponse()
            assert (answer.status, answer.read()) == (200, b"")


def test_a_replica_that_is_killed_is_a_503_and_soon_there_again(server, photographs):
    image = encode_png(decode_image((photographs / "coffee.png").read_bytes())[:256, :256])
    children = psutil.Process(server.process.pid).children(recursive=True)
    (replica,) = titled(children, "ServeReplica")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.post, "/restore?sigma=0", image)
        server.until(lambda health: health["places"]["taken"] == 1)
        replica.kill()
        status, headers, body = asked.result()
    assert (status, int(headers["retry-after"]) >= 1, list(json.loads(body))) == (503, True, ["error"])
    status, _, _ = server.post("/restore?sigma=0", image)
    assert status == 200


def test_a_restoration_is_told_while_it_happens(server, photograph):
    asked = urllib.request.Request(
        f"{server.url}/restore?sigma=0.01", encode_png(photograph), {"Accept": "text/event-stream"}
    )
    with urllib.request.urlopen(asked, timeout=120) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = parse(answer.read())
    assert [name for name, _ in told] == ["queue", *["step"] * (len(told) - 2), "result"]
    assert told[0][1] == {"ahead": 0}
    shares = [data["share"] for name, data in told if name == "step"]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    plain = json.loads(server.post("/restore?sigma=0.01&format=json", encode_png(photograph))[2])
    assert told[-1][1]["image"] == plain["image"]


@pytest.mark.parametrize("accept", ["text/event-stream", "image/png"])
def test_the_work_of_a_client_that_hung_up_is_stopped(server, large, accept):
    """Both the request that is worked on and the one that waits; the log has a line for each."""
    stopped, lines = server.health()["stopped"], server.log.read_text().count("the client is gone: ")
    host = server.url.removeprefix("http://")
    both = [http.client.HTTPConnection(host, timeout=60) for _ in range(2)]
    for number, connection in enumerate(both, start=1):
        connection.request("POST", "/restore?sigma=0.01", encode_png(large), {"Accept": accept})
        server.until(lambda health, n=number: health["places"]["taken"] == n)
    if accept == "text/event-stream":
        assert both[0].getresponse().readline() == b"event: queue\n"
    for connection in both:
        assert connection.sock is not None or accept == "text/event-stream"
        connection.close()
    found = server.until(lambda health: health["places"]["taken"] == 0)
    assert found["stopped"] == stopped + 2
    server.until(lambda _: server.log.read_text().count("the client is gone: ") == lines + 2)
    assert "the client is gone: a request that waited is dropped" in server.log.read_text()
    assert "the client is gone: a restoration is stopped after " in server.log.read_text()


def test_a_promoted_version_is_taken_over_and_a_damaged_one_is_not(server, photograph):
    image = encode_png(photograph)
    point_at(server.store, 2)
    server.until(lambda health: health["model"]["version"] == 2)
    assert server.post("/restore", image)[1]["x-model"] == f"models:/{NAME}/2"
    point_at(server.store, 3)
    refused = server.until(lambda health: health["refused"] is not None)
    assert refused["model"]["version"] == 2
    assert refused["refused"]["model"] == f"models:/{NAME}/3"
    assert "missing, damaged" in refused["refused"]["error"]
    assert server.post("/restore", image)[1]["x-model"] == f"models:/{NAME}/2"
    point_at(server.store, 1)
    server.until(lambda health: health["model"]["version"] == 1 and health["refused"] is None)
    log = server.log.read_text()
    assert f"models:/{NAME}@champion is now version 2" in log
    assert f"models:/{NAME}/3 cannot be loaded, models:/{NAME}/2 stays in use" in log


def test_a_second_server_on_the_same_port_says_so_in_a_line(server, model_folder):
    port = server.url.rpartition(":")[2]
    command = [sys.executable, str(REPO / "jobs" / "serve.py"), "--model", str(model_folder(0)), "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: 127.0.0.1:{port}: ")
    assert done.stderr.count("\n") == 1


def restore_on(page: Page, server: Server, file: Path, where: str, scheme: str = "light") -> None:
    page.open(f"{server.url}/", *WIDTHS[where], scheme)
    page.wait_for("document.querySelectorAll('[name=scale]').length > 0")
    page.choose_file("#file", file)
    page.wait_for("!document.querySelector('#go').disabled")
    page.evaluate("document.querySelector('#go').click()")
    page.wait_for("!document.querySelector('#result').hidden || !document.querySelector('#problem').hidden")


@pytest.mark.parametrize(("where", "scheme"), [("desk", "light"), ("phone", "dark")])
def test_a_photograph_is_uploaded_compared_and_downloaded(page, server, photograph, tmp_path, where, scheme):
    file = tmp_path / "coffee & cream.png"
    file.write_bytes(encode_png(photograph))
    restore_on(page, server, file, where, scheme)
    assert page.evaluate("document.querySelector('#problem').textContent") == ""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the window"
    addresses = [e["params"]["request"]["url"] for e in page.events if e.get("method") == "Network.requestWillBeSent"]
    assert {a.split("?")[0] for a in addresses if not a.startswith(("data:", "blob:"))} == {
        f"{server.url}/",
        f"{server.url}/healthz",
        f"{server.url}/restore",
    }
    complaints = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [event for event in page.events if event.get("method") in complaints] == []

    # The pictures are what the interface gives, the download as well.
    sizes = "['before', 'after', 'kernel'].map(i => document.getElementById(i).naturalWidth)"
    assert page.evaluate(sizes) == [144, 144, page.evaluate("answer.kernel.length")]
    assert page.evaluate("document.querySelector('#download').download") == "coffee & cream-x2.png"
    fetched = page.evaluate("fetch(document.querySelector('#after').src).catch(() => null).then(() => answer.image)")
    own = decode_photograph(base64.b64decode(fetched)).pixels
    assert own.shape == (128, 144, 3)

    # The divider: by keys, and by dragging; what is left of it is the other picture.
    divider = "Number(document.querySelector('#handle').getAttribute('aria-valuenow'))"
    page.evaluate("document.querySelector('#stage').scrollIntoView({block: 'center', behavior: 'instant'})")
    page.evaluate("document.querySelector('#handle').focus()")
    assert page.evaluate(divider) == 50
    page.press("ArrowRight")
    assert page.evaluate(divider) == 52
    page.press("Home")
    assert page.evaluate(divider) == 0
    left, top, width, height = page.evaluate(
        "(r => [r.x, r.y, r.width, r.height])(document.querySelector('#stage').getBoundingClientRect())"
    )
    for kind, x in (("mousePressed", left + 2), ("mouseMoved", left + width / 2), ("mouseMoved", left + 0.75 * width)):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=top + height / 2, button="left", buttons=1)
    page.call(
        "Input.dispatchMouseEvent", type="mouseReleased", x=left + 0.75 * width, y=top + height / 2, button="left"
    )
    assert page.evaluate(divider) == pytest.approx(75, abs=1)
    assert page.evaluate("document.querySelector('#right').style.clipPath").startswith("inset(0")
    page.evaluate("document.querySelector('[name=left][value=input]').click()")
    page.wait_for("document.querySelector('#before').naturalWidth === 72")  # the input's own pixels

    # Zoom keeps the middle where it is.
    page.evaluate("document.querySelector('#in').click(), document.querySelector('#in').click()")
    assert page.evaluate("[view.zoom, view.x / $('stage').clientWidth]") == pytest.approx([2.25, -0.625], abs=0.01)
    red, green, blue = cv2.mean(cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR))[:3]
    assert ((red + green + blue) / 3 < 110) == (scheme == "dark")


def test_twenty_megapixels_are_refused_and_a_broken_file_is(page, server, photograph, tmp_path):
    large, broken = tmp_path / "large.png", tmp_path / "broken.png"
    large.write_bytes(cv2.imencode(".png", np.zeros((4000, 5000, 3), np.uint8))[1].tobytes())
    broken.write_bytes(encode_png(photograph)[:900])
    for file, message in (
        (large, "5000 x 4000 is 20.0 megapixels; this server takes 4"),
        (broken, "damaged pixel data"),
    ):
        restore_on(page, server, file, "phone")
        assert page.evaluate("document.querySelector('#problem').textContent") == message
        assert page.evaluate("document.querySelector('#result').hidden")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert not page.evaluate("document.querySelector('#go').disabled"), "another try is possible"
    assert server.health()["places"]["taken"] == 0


def test_a_photograph_is_shown_upright_at_once_and_cancel_ends_the_work(page, server, large, tmp_path):
    """Stored turned by a quarter, as telephones do."""
    exif, file = Image.Exif(), tmp_path / "phone.jpg"
    exif[0x0112] = 6
    Image.fromarray(np.rot90(large).copy()).save(file, quality=95, exif=exif)
    stopped = server.health()["stopped"]
    page.open(f"{server.url}/", *WIDTHS["phone"], "light")
    page.wait_for("document.querySelectorAll('[name=scale]').length > 0")
    page.choose_file("#file", file)
    page.wait_for("!$('preview').hidden")
    page.evaluate("$('go').click()")
    assert page.evaluate("[$('growing').hidden, $('busy').hidden]") == [False, False]
    assert page.evaluate("$('growing').width / $('growing').height") == pytest.approx(4 / 3, abs=0.01)
    colour = (
        "[...$('growing').getContext('2d').getImageData($('growing').width / 2, $('growing').height / 4, 1, 1).data]"
    )
    assert page.evaluate(colour)[:3] == pytest.approx(large[300, 800].tolist(), abs=25)
    page.wait_for("$('bar').value > 0 && /left|done/.test($('seconds').textContent)")
    assert page.evaluate("/^(Estimating|Restoring)/.test($('doing').textContent)")
    page.evaluate("$('cancel').click()")
    page.wait_for("$('busy').hidden")
    assert page.evaluate("[$('result').hidden, $('problem').hidden, $('go').disabled]") == [True, True, False]
    assert server.until(lambda health: health["places"]["taken"] == 0)["stopped"] == stopped + 1


def test_what_was_chosen_is_what_is_asked_for(page, server, photograph, tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(encode_png(photograph))
    page.open(f"{server.url}/", *WIDTHS["desk"], "light")
    page.wait_for("document.querySelectorAll('[name=scale]').length > 0")
    page.evaluate("document.querySelector('[name=noise][value=given]').click()")
    page.evaluate("document.querySelector('#level').value = '5.1'")
    page.choose_file("#file", file)
    page.evaluate("document.querySelector('#go').click()")
    page.wait_for("!document.querySelector('#result').hidden")
    assert "5.10 of 255, given" in page.evaluate("document.querySelector('#facts').textContent")
    assert page.evaluate("[answer.scale, answer.sigma]") == pytest.approx([2, 0.02])

    # Another strength: the answer's own kernel goes back, and the picture changes in its place.
    page.evaluate("window.first = answer, $('in').click()")
    page.evaluate("$('strength').value = 30, $('strength').dispatchEvent(new Event('change'))")
    page.wait_for("$('facts').textContent.includes('30%')")
    assert page.evaluate("[answer.strength, answer.sigma]") == pytest.approx([0.3, 0.02])
    assert page.evaluate("answer.kernel_from") == "estimated"
    assert page.evaluate("[answer.image !== first.image, '' + answer.kernel === '' + first.kernel]") == [True, True]
    assert page.evaluate("[view.zoom, $('result').hidden, $('problem').textContent]") == [1.5, False, ""]
