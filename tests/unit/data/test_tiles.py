"""Tiles lose nothing, and tars repeat byte by byte."""

from __future__ import annotations

import io
import json
import tarfile
from typing import get_args

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.tiles import cut, is_flat, read_samples, tile_count, tile_starts, write_samples
from pipeline.images.decode import decode_tile
from pipeline.images.photograph import Codec


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tar(image: np.ndarray, tile: int) -> bytes:
    stream = io.BytesIO()
    write_samples(cut(image, tile, name="a.png", sha256="f" * 64), stream)
    return stream.getvalue()


@given(st.integers(1, 400), st.integers(32, 120))
def test_starts_cover_the_axis_and_stay_inside(length: int, tile: int):
    starts = tile_starts(length, tile)
    covered = {p for start in starts for p in range(start, min(start + tile, length))}
    assert covered == set(range(length))
    assert starts[-1] + min(tile, length) == length
    assert len(set(starts)) == len(starts)


@pytest.mark.parametrize("codec", get_args(Codec))
def test_the_image_can_be_put_together_again(codec: Codec):
    image = picture(100, 77)
    again = np.zeros_like(image)
    stream = io.BytesIO()
    write_samples(cut(image, 32, name="a.png", sha256="f" * 64, codec=codec), stream)
    for sample in read_samples(stream.getvalue()):
        assert sample.codec == codec
        top, left, bottom, right = json.loads(sample.json)["box"]
        again[top:bottom, left:right] = decode_tile(sample.image)
    assert np.array_equal(again, image)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(32, 120))
def test_the_count_of_tiles_is_known_beforehand(height: int, width: int, tile: int):
    image = np.zeros((height, width, 3), np.uint8)
    assert tile_count(height, width, tile) == len(list(cut(image, tile, name="a", sha256="0" * 64)))


def test_a_tile_is_flat_when_no_channel_varies():
    tile = np.full((40, 40, 3), 90, np.uint8)
    tile[:, ::2, 1] = 94  # standard deviation 2 in one channel
    assert is_flat(tile, 2.01)
    assert not is_flat(tile, 1.99)
    assert list(cut(tile, 40, name="a", sha256="0" * 64, drop_flat=2.01)) == []
    assert not is_flat(np.zeros((8, 8, 3), np.uint8), 0)


def test_tars_are_byte_identical_and_carry_no_clock_or_owner():
    first, second = tar(picture(70, 70), 32), tar(picture(70, 70), 32)
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        assert {(m.mtime, m.uname, m.gname, m.uid) for m in archive} == {(0, "", "", 0)}


def test_our_reader_and_plain_webdataset_see_the_same_samples(tmp_path):
    data = tar(picture(70, 90), 32)
    ours = [(s.key, s.image, s.json) for s in read_samples(data)]
    (tmp_path / "a.tar").write_bytes(data)
    theirs = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    assert ours == [(s["__key__"], s["png"], s["json"]) for s in theirs]
    keys = [key for key, _, _ in ours]
    assert len(set(keys)) == len(keys) == 9
    assert not any("." in key for key in keys)
