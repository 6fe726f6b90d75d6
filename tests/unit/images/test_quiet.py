"""A bad file is one line of ours: what decoders print themselves does not reach standard error, in any thread."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from cv2.utils import logging

from pipeline.images import BadImageError
from pipeline.images.decode import decode_image, decode_photograph
from pipeline.images.encode import encode_photograph
from pipeline.images.photograph import Photograph
from pipeline.images.quiet import quiet_decoders
from tests.unit.images.samples import encoded, picture

PIXELS = picture()


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]


def damaged(kind: str, **options: object) -> list[bytes]:
    """Files with one wrong bit each."""
    data = encoded(PIXELS, kind, **options)
    return [flipped(data, place) for place in range(8, len(data), max(1, len(data) // 60))]


def print_in_c(text: bytes) -> None:
    """As libpng does."""
    libc = ctypes.CDLL(None)
    stream = ctypes.c_void_p.in_dll(libc, "stderr")
    libc.fputs(text, stream)
    libc.fflush(stream)


@pytest.mark.parametrize(
    "files",
    [damaged("PNG"), damaged("TIFF", compression="tiff_deflate"), damaged("TIFF", compression="tiff_lzw")],
    ids=["libpng", "deflate in a TIFF", "LZW in a TIFF"],
)
def test_decoders_print_nothing(files: list[bytes], capfd: pytest.CaptureFixture[str]):
    def bad(data: bytes) -> bool:
        try:
            decode_photograph(data)
            decode_image(data)
        except BadImageError:
            return True
        return False

    with ThreadPoolExecutor(2) as pool:
        assert any(pool.map(bad, files))
    assert capfd.readouterr().err == ""


def test_a_tiff_is_written_without_a_word(capfd: pytest.CaptureFixture[str]):
    encode_photograph(Photograph(PIXELS, "tiff"), 90)
    assert capfd.readouterr().err == ""


def test_extra_bytes_in_a_jpeg_print_nothing(capfd: pytest.CaptureFixture[str]):
    data = encoded(PIXELS, "JPEG", quality=90)
    decode_image(data[:-2] + bytes(40) + data[-2:])
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="C's stderr has another name elsewhere")
def test_all_else_is_printed_meanwhile_and_afterwards(capfd: pytest.CaptureFixture[str]):
    level = logging.getLogLevel()
    inside, leave = threading.Event(), threading.Event()

    def decode() -> None:
        with quiet_decoders():
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=decode)
    thread.start()
    inside.wait(30)
    with quiet_decoders():
        os.write(2, b"ours ")
    print_in_c(b"libpng error: not told\n")  # the other thread decodes still
    leave.set()
    thread.join()
    print_in_c(b"and others")
    assert capfd.readouterr().err == "ours and others"
    assert logging.getLogLevel() == level
