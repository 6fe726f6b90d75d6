"""Image files to pixels: what is converted, what is refused, and that OpenCV's BGR does not leak."""

from __future__ import annotations

import io
import struct
import zlib
from typing import get_args

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.images import BadImageError
from pipeline.images.decode import decode_image, decode_photograph, decode_tile
from pipeline.images.encode import encode_png, encode_tile
from pipeline.images.header import read_header
from pipeline.images.photograph import Codec

RED = (200, 30, 10)


def file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_colours_come_out_as_rgb(kind: str):
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode_image(file(Image.new("RGB", (5, 3), RED), kind, **options))
    assert image.shape == (3, 5, 3)
    assert np.array_equal(image, np.broadcast_to(np.uint8(RED), (3, 5, 3)))


@pytest.mark.parametrize(
    ("header", "alpha_mask", "fourth", "channels"),
    [(40, 0, 0, 3), (52, 0, 0, 3), (108, 0, 7, 3), (124, 0xFF000000, 0, 3), (124, 0xFF000000, 7, 4)],
)
def test_the_fourth_byte_of_a_bmp_is_alpha_only_where_the_file_says_so(header, alpha_mask, fourth, channels):
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, alpha_mask)[: 12 if header < 56 else 16]
    pixels = bytes((*RED[::-1], fourth)) * 6
    told = struct.pack("<IiiHHIIiiII", header, 3, 2, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    told += masks.ljust(header - 40, b"\0")
    data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(told)) + told + pixels
    found = decode_photograph(data).pixels
    expected = (*RED, fourth)[:channels]
    assert np.array_equal(found, np.broadcast_to(np.uint8(expected), (2, 3, channels)))


def test_png_roundtrip_is_lossless_and_its_bytes_repeat():
    pixels = np.random.default_rng(0).integers(0, 256, (17, 23, 3), dtype=np.uint8)
    for codec in get_args(Codec):
        assert np.array_equal(decode_tile(encode_tile(pixels, codec)), pixels)
        with pytest.raises(BadImageError):
            decode_tile(encode_tile(pixels, codec)[:-9])
    assert encode_png(pixels) == encode_png(pixels.copy())


def test_sixteen_bits_are_rounded():
    values = np.array([[0, 128, 129, 257, 385, 386, 65535]], np.uint16)
    image = decode_image(encode_png(values))
    assert image[0, :, 0].tolist() == np.round(values[0] / 257).astype(int).tolist()


def test_grey_becomes_three_equal_channels():
    image = decode_image(file(Image.new("L", (4, 4), 77)))
    assert image.shape == (4, 4, 3)
    assert (image == 77).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_lie_over_white(mode: str):
    channels = 4 if mode == "RGBA" else 2
    picture = np.zeros((1, 3, channels), np.uint8)
    picture[0, :, -1] = [0, 128, 255]
    assert decode_image(file(Image.fromarray(picture, mode)))[0, :, 0].tolist() == [255, 127, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int):
    upright = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(Image.fromarray(upright), "PNG", exif=exif)
    from PIL import ImageOps

    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode_image(data), expected)
    header = read_header(data)
    assert (header.height, header.width) == expected.shape[:2]


def animated() -> bytes:
    frames = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in (1, 200)]
    return file(frames[0], "PNG", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not an image", "not a readable image"),
        (file(Image.new("CMYK", (4, 4)), "JPEG"), "CMYK"),
        (file(Image.new("RGB", (4, 4)), "GIF"), "GIF is not supported"),
        (animated(), "animated"),
        (file(Image.new("F", (4, 4)), "TIFF"), "a TIFF of floats of 32 bits; convert"),
        (file(Image.new("RGB", (64, 64), RED))[:90], "damaged|not a readable"),
        (b"", "not a readable image"),
    ],
)
def test_what_cannot_be_used_says_why(data: bytes, reason: str):
    with pytest.raises(BadImageError, match=reason):
        decode_image(data)


def tiff(stored: np.ndarray, photometric: int, extra: int | None = None, order: str = "<", big: bool = False) -> bytes:
    """A plain TIFF of one strip, with or without the tag ExtraSamples."""
    height, width, count = (*stored.shape, 1)[:3]
    word = "Q" if big else "I"
    pixels = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    pixels += bytes(len(pixels) % 2)
    start = 16 if big else 8
    bits = struct.pack(f"{order}{count}H", *[8 * stored.itemsize] * count)
    short = {0x100: width, 0x101: height, 0x103: 1, 0x106: photometric, 0x115: count, 0x116: height}
    values = {tag: (3, 1, struct.pack(f"{order}H", value)) for tag, value in short.items()}
    values |= {
        tag: (16 if big else 4, 1, struct.pack(order + word, value))
        for tag, value in ((0x111, start), (0x117, stored.nbytes))
    }
    inline = 8 if big else 4
    values[0x102] = 3, count, bits if len(bits) <= inline else struct.pack(order + word, start + len(pixels))
    if extra is not None:
        values[0x152] = 3, 1, struct.pack(f"{order}H", extra)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}H", 43 if big else 42)
    head += (
        struct.pack(f"{order}HHQ", 8, 0, 16 + len(pixels + bits))
        if big
        else struct.pack(f"{order}I", 8 + len(pixels + bits))
    )
    entries = b"".join(
        struct.pack(f"{order}HH{word}", tag, kind, number) + value.ljust(inline, b"\0")
        for tag, (kind, number, value) in sorted(values.items())
    )
    return head + pixels + bits + struct.pack(f"{order}{'Q' if big else 'H'}", len(values)) + entries + bytes(inline)


def channels(count: int, dtype: type) -> np.ndarray:
    """Return pixels, the alpha of the last channel from 0 to the most."""
    most = np.iinfo(dtype).max
    values = np.random.default_rng(0).integers(0, most + 1, (5, 6, count), dtype)
    values[..., -1] = np.linspace(0, most, 30).astype(dtype).reshape(5, 6)
    return values[..., 0] if count == 1 else values


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_is_read_as_it_is(dtype: type, order: str, big: bool):
    most = np.iinfo(dtype).max
    grey, rgb, rgba = (channels(count, dtype) for count in (1, 3, 4))
    cases = [
        (tiff(grey, 1, None, order, big), grey),
        (tiff(grey, 0, None, order, big), most - grey),
        (tiff(rgb, 2, None, order, big), rgb),
        (tiff(rgba, 2, 2, order, big), rgba),
        (tiff(rgba, 2, None, order, big), rgba),
        (tiff(rgba, 2, 0, order, big), rgba[..., :3]),
    ]
    if dtype == np.uint8:
        la = channels(2, dtype)
        white = np.dstack([255 - la[..., 0], la[..., 1]])
        cases += [(tiff(la, 1, 2, order, big), la), (tiff(la, 1, 0, order, big), la[..., 0])]
        cases += [(tiff(white, 0, 2, order, big), la), (tiff(white, 0, 0, order, big), la[..., 0])]
    for data, expected in cases:
        found = decode_photograph(data).pixels
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected)


def few_bits(bits: int, photometric: int, order: str, colours: np.ndarray | None = None) -> tuple[bytes, np.ndarray]:
    """A TIFF of 8 x 5 values of 1 to 8 bits, and these values."""
    values = np.random.default_rng(bits).integers(0, 2**bits, (5, 8), np.uint8)
    packed = np.packbits(np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(5, -1), axis=1)
    file = tiff(packed, photometric, None, order)
    for tag, was, now in ((0x100, packed.shape[1], 8), (0x102, 8, bits)):
        entry = struct.pack(f"{order}HHI", tag, 3, 1)
        file = file.replace(entry + struct.pack(f"{order}H", was), entry + struct.pack(f"{order}H", now))
    if colours is not None:  # behind the last tag, in place of the end of the directory
        start = struct.unpack(f"{order}I", file[4:8])[0]
        (count,) = struct.unpack(f"{order}H", file[start : start + 2])
        entry = struct.pack(f"{order}HHII", 0x140, 3, colours.size, len(file) + 12)
        file = file[:start] + struct.pack(f"{order}H", count + 1) + file[start + 2 : -4] + entry + bytes(4)
        file += colours.T.astype(f"{order}u2").tobytes()
    return file, values


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_tiff_of_few_bits_is_read_as_it_is(bits: int, order: str):
    black, values = few_bits(bits, 1, order)
    grey = values * (255 // (2**bits - 1))
    np.testing.assert_array_equal(decode_photograph(black).pixels, grey)
    np.testing.assert_array_equal(decode_photograph(few_bits(bits, 0, order)[0]).pixels, 255 - grey)
    colours = np.random.default_rng(0).integers(0, 256, (2**bits, 3)) * 257
    found = decode_photograph(few_bits(bits, 3, order, colours)[0]).pixels
    np.testing.assert_array_equal(found, colours[values] // 257)


@pytest.mark.parametrize(("bits", "photometric"), [(3, 1), (6, 1), (6, 0), (6, 3), (1, 2), (4, 2)])
def test_a_tiff_of_other_bits_is_named_by_them(bits: int, photometric: int):
    with pytest.raises(BadImageError, match=f"^a TIFF of {bits} bits a value; convert the file to 8 or 16 bits$"):
        decode_photograph(few_bits(bits, photometric, "<")[0])


@pytest.mark.parametrize(("count", "dtype"), [(2, np.uint8), (4, np.uint8), (4, np.uint16)])
def test_premultiplied_alpha_is_divided_out(count: int, dtype: type):
    straight = channels(count, dtype)
    alpha = straight[..., -1:].astype(np.float64) / np.iinfo(dtype).max
    stored = np.concatenate([np.round(straight[..., :-1] * alpha).astype(dtype), straight[..., -1:]], axis=2)
    found = decode_photograph(tiff(stored, 2 if count == 4 else 1, 1)).pixels
    np.testing.assert_array_equal(found[..., -1], straight[..., -1])
    error = np.abs(found[..., :-1] - straight[..., :-1].astype(np.float64)) * alpha
    assert error.max() <= 1


@pytest.mark.parametrize("orientation", [3, 6])
def test_grey_with_alpha_of_a_tiff_is_turned_upright(orientation: int):
    la = channels(2, np.uint8)
    data = file(Image.fromarray(la, "LA"), "TIFF", tiffinfo={0x112: orientation}, compression="tiff_lzw")
    expected = la[::-1, ::-1] if orientation == 3 else np.rot90(la, -1)
    np.testing.assert_array_equal(decode_photograph(data).pixels, expected)


def planar(stored: np.ndarray) -> bytes:
    """A TIFF that says of its channels that each has a strip of its own."""
    data = tiff(stored, 2, 0)
    return data.replace(struct.pack("<HHIHH", 0x152, 3, 1, 0, 0), struct.pack("<HHIHH", 0x11C, 3, 1, 2, 0))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            tiff(channels(2, np.uint16), 1, 2),
            "2 channels of 16 bits, 1 of them beside its grey; convert the file",
        ),
        (tiff(channels(5, np.uint8), 2, 0), "5 channels of 8 bits, 2 of them beside its colours; convert"),
        (tiff(channels(3, np.uint8), 1, 0), "3 channels of 8 bits, 2 of them beside its grey; convert"),
        (planar(channels(3, np.uint16)), "one after the other; store them interleaved"),
    ],
)
def test_channels_of_a_tiff_that_would_change_are_refused(data: bytes, reason: str):
    with pytest.raises(BadImageError, match=reason):
        decode_photograph(data)


def test_a_plain_tiff_that_says_too_many_bytes_is_read():
    pixels = channels(3, np.uint8)
    count, said = (struct.pack("<HHII", 0x117, 4, 1, count) for count in (pixels.nbytes, 2**20))
    data = tiff(pixels, 2).replace(count, said)
    assert said in data
    np.testing.assert_array_equal(decode_photograph(data).pixels, pixels)


def written(pixels: np.ndarray, *previews: np.ndarray, subfile: int = 1, **options: object) -> bytes:
    """The TIFF that tifffile writes, with further pages of this NewSubfileType."""
    stream = io.BytesIO()
    kind = "rgb" if pixels.ndim == 3 else "minisblack"
    with tifffile.TiffWriter(stream) as writer:
        writer.write(pixels, photometric=kind, metadata=None, **options)
        for page in previews:
            writer.write(page, photometric=kind, metadata=None, subfiletype=subfile)
    return stream.getvalue()


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_tiff_of_small_plain_tiles_is_read(count: int, planes: str):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3)[: 2 + (count > 1)], np.uint8)
    stored = np.moveaxis(pixels, 2, 0).copy() if (separate := planes == "separate" and count > 1) else pixels
    data = written(stored, tile=(16, 16), **({"planarconfig": planes} if separate else {}))
    np.testing.assert_array_equal(decode_photograph(data).pixels, pixels)


def test_a_preview_in_a_tiff_is_no_page_and_other_pages_are():
    pixels = channels(3, np.uint8)
    np.testing.assert_array_equal(decode_photograph(written(pixels, pixels[::2, ::2], pixels[::4, ::4])).pixels, pixels)
    for data in (written(pixels, pixels, subfile=2), written(pixels, pixels, subfile=1, subfiletype=1)):
        with pytest.raises(BadImageError, match=r"multi-page \(2 frames\)"):
            decode_photograph(data)


@pytest.mark.parametrize("dtype", [np.float16, np.int16, np.complex64])
def test_values_of_a_tiff_that_are_not_read_are_named(dtype: type):
    kind = {np.float16: "floats of 16", np.int16: "signed integers of 16", np.complex64: "complex numbers of 64"}[dtype]
    with pytest.raises(BadImageError, match=f"^a TIFF of {kind} bits; convert the file to whole numbers"):
        decode_photograph(written(np.zeros((4, 4), dtype)))


def test_a_decompression_bomb_is_refused_by_its_header():
    bomb = bytearray(file(Image.new("RGB", (4, 4))))
    bomb[16:24] = struct.pack(">II", 30_000, 10_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    with pytest.raises(BadImageError, match="more than 178956970 pixels"):
        decode_image(bytes(bomb))
