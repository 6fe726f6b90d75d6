"""EXIF, XMP, colour profiles and colour chunks: what a result of another size, format or kind of colour holds."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from pipeline.images.decode import decode_photograph
from pipeline.images.encode import encode_photograph
from pipeline.images.exif import exif_orientation, upright
from pipeline.images.metadata import carried
from pipeline.images.parts import Metadata
from pipeline.images.photograph import SUFFIX, Photograph
from tests.unit.images.samples import (
    MAKER_NOTE,
    XMP,
    camera,
    chunk,
    encoded,
    picture,
    profile,
    with_all,
    with_chunks,
    with_xmp_alone,
)

RESULT = picture(64, 96)


def rewritten(data: bytes, kind: str, pixels: np.ndarray = RESULT, *, strip: bool = False) -> tuple[bytes, list[str]]:
    """A result of a file in another format, and what is lost."""
    metadata, lost = carried(decode_photograph(data).metadata, pixels, kind, strip=strip)  # type: ignore[arg-type]
    return encode_photograph(Photograph(pixels, kind, metadata), 90), lost  # type: ignore[arg-type]


@pytest.mark.parametrize("after", SUFFIX)
@pytest.mark.parametrize("before", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_date_camera_exposure_and_place_are_kept_and_made_to_fit(before, after):
    data, lost = rewritten(with_all(before), after)
    assert lost == []
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (96, 64)
        exif = image.getexif()
        image.load()
        xmp = image.info.get("xmp") or getattr(image, "tag_v2", {}).get(700)
    assert (exif[0x010F], exif[0x0110], exif[0x0132]) == ("Maker", "Camera 1", "2020:01:02 03:04:05")
    assert exif.get(0x0112, 1) == 1
    inner, place = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
    assert (inner[0x829A], inner[0x9003]) == (1 / 125, "2020:01:02 03:04:05")
    assert (inner[0xA002], inner[0xA003], inner[0x927C]) == (96, 64, MAKER_NOTE)
    assert (place[1], place[2], place[3]) == ("N", (52.0, 31.0, 12.5), "E")
    assert b'tiff:Orientation="1"' in xmp
    assert b'exif:PixelXDimension="96"' in xmp
    assert b"cat" in xmp
    assert b"Thumbnails" not in xmp
    # What was written is read again in full.
    again = decode_photograph(data)
    assert again.pixels.shape == RESULT.shape
    assert again.metadata.exif is not None
    assert again.notes == ()


@pytest.mark.parametrize("before", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_an_orientation_in_xmp_alone_is_not_applied_and_stays(before):
    """So a program that applies it, and one that does not, show result and original alike."""
    data, found = with_xmp_alone(before), decode_photograph(with_xmp_alone(before))
    assert found.pixels.shape == picture().shape
    for after in SUFFIX:
        xmp = decode_photograph(rewritten(data, after)[0]).metadata.xmp
        assert b'tiff:Orientation="6"' in xmp
        assert b'exif:PixelXDimension="96"' in xmp


@pytest.mark.parametrize("kind", SUFFIX)
def test_metadata_can_be_left_out(kind):
    colour = profile(b"RGB ")
    data = encoded(picture(), "JPEG", exif=Image.open(io.BytesIO(with_all("JPEG"))).getexif(), icc_profile=colour)
    found = decode_photograph(rewritten(data, kind, strip=True)[0]).metadata
    assert (found.exif, found.xmp, found.icc) == (None, None, colour)


def test_the_thumbnail_goes_and_the_makers_note_stays_where_it_was():
    block = decode_photograph(with_all("JPEG")).metadata.exif
    assert block is not None
    order = "<" if block[:2] == b"II" else ">"
    (first,) = struct.unpack_from(f"{order}I", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, first)
    end = first + 2 + 12 * count
    thumbnail = (
        struct.pack(f"{order}HHHIIHHII", 2, 0x201, 4, 1, len(block) + 30, 0x202, 4, 1, 9) + bytes(4) + b"THUMBNAIL"
    )
    block = block[:end] + struct.pack(f"{order}I", len(block)) + block[end + 4 :] + thumbnail
    fitted = upright(block, 640, 480)
    assert b"THUMBNAIL" not in fitted
    assert fitted.index(MAKER_NOTE) == block.index(MAKER_NOTE)
    assert fitted.count(MAKER_NOTE) == 1
    assert exif_orientation(fitted) == 1
    assert upright(fitted, 640, 480) == fitted


@pytest.mark.parametrize(
    "junk", [b"", b"II", b"Exif", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 50]
)
def test_an_exif_block_that_cannot_be_read_tells_no_orientation(junk):
    assert exif_orientation(junk) == 1
    kept, lost = carried(Metadata(exif=junk), RESULT, "png")
    assert lost in ([], ["EXIF that cannot be read left out"])
    assert kept.exif is None or exif_orientation(kept.exif) == 1


def test_a_directory_that_points_to_itself_ends():
    loop = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x8769, 4, 1, 8) + bytes(4)
    assert exif_orientation(upright(loop, 3, 2)) == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_with_alpha_stays_so_and_keeps_its_profile(dtype):
    grey = (picture(20, 30, 2).astype(np.uint32) * (np.iinfo(dtype).max // 255)).astype(dtype)
    data = encode_photograph(Photograph(grey, "png", Metadata(profile(b"GRAY"))), 90)
    found = decode_photograph(data)
    np.testing.assert_array_equal(found.pixels, grey)
    assert data[25] == 4  # its colour type: grey with alpha
    kept, lost = carried(found.metadata, found.pixels, "png")
    assert (kept.icc, lost) == (profile(b"GRAY"), [])


@pytest.mark.parametrize(
    ("space", "channels", "kind", "fits"),
    [
        (b"GRAY", 1, "png", True),
        (b"GRAY", 1, "jpeg", True),
        (b"GRAY", 1, "webp", False),  # which has no grey
        (b"GRAY", 2, "tiff", False),  # written as RGBA
        (b"GRAY", 3, "png", False),
        (b"RGB ", 3, "tiff", True),
        (b"RGB ", 1, "jpeg", False),
        (b"CMYK", 3, "png", False),
    ],
)
def test_the_profile_of_a_result_fits_its_colours_or_is_left_out_and_said(space, channels, kind, fits):
    pixels = picture(8, 9, channels)
    pixels = pixels[..., 0] if channels == 1 else pixels
    kept, lost = carried(Metadata(profile(space)), pixels, kind)
    assert (kept.icc is not None) == fits
    assert lost == [] if fits else "left out" in lost[0]


@pytest.mark.parametrize("icc", [profile(b"RGB ")[:-1], profile(b"RGB ") + b"\0", profile(b"RGB ")[:20], bytes(200)])
def test_a_damaged_profile_is_left_out_and_said(icc):
    kept, lost = carried(Metadata(icc), RESULT, "png")
    assert (kept.icc, lost) == (None, ["damaged colour profile left out"])


def test_a_profile_of_the_right_size_without_its_signature_is_damaged():
    whole = profile(b"RGB ")
    assert carried(Metadata(whole), RESULT, "png") == (Metadata(whole), [])
    assert carried(Metadata(whole.replace(b"acsp", b"acsq")), RESULT, "png")[1] == ["damaged colour profile left out"]


@pytest.mark.parametrize("depth", [8, 16])
def test_a_grey_key_colour_is_alpha(depth):
    values = np.array([[0, 7, 200], [7, 255, 7]], np.uint16) * (257 if depth == 16 else 1)
    grey = encoded(Image.fromarray(values if depth == 16 else values.astype(np.uint8)), "PNG")
    data = with_chunks(grey, chunk(b"tRNS", struct.pack(">H", int(values[0, 1]))))
    pixels = decode_photograph(data).pixels
    np.testing.assert_array_equal(pixels[..., 0], values)
    np.testing.assert_array_equal(pixels[..., 1] == 0, values == values[0, 1])
    assert pixels[..., 1].max() == 2**depth - 1


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_grey_key_colour_of_few_bits_is_alpha(bits):
    import zlib

    top = 2**bits - 1
    rows = bytes([0, top << (8 - bits)])  # one pixel white, the others black
    header = struct.pack(">IIBBBBB", 8 // bits, 1, bits, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"tRNS", struct.pack(">H", top)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    pixels = decode_photograph(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)).pixels
    assert pixels[0, 0].tolist() == [255, 0]
    assert (pixels[0, 1:] == [0, 255]).all()


COLOUR = {
    b"gAMA": struct.pack(">I", 100000),
    b"cHRM": struct.pack(">8I", *range(8)),
    b"cICP": bytes((9, 16, 0, 1)),
    b"mDCV": bytes(24),
    b"cLLI": bytes(8),
}


def test_chunks_that_say_how_a_png_looks_are_kept_in_a_png_and_missed_elsewhere():
    data = with_chunks(encoded(picture(), "PNG"), *(chunk(kind, body) for kind, body in COLOUR.items()))
    result, lost = rewritten(data, "png")
    assert lost == []
    assert dict(decode_photograph(result).metadata.colour) == COLOUR
    (said,) = rewritten(data, "jpeg")[1]
    assert said.startswith("gAMA, cHRM, cICP")
    plain = with_chunks(encoded(picture(), "PNG"), chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"sRGB", b"\0"))
    assert rewritten(plain, "jpeg")[1] == []


def test_what_a_jpeg_cannot_hold_is_said():
    metadata = Metadata(exif=upright(camera_block(70_000), 96, 64), xmp=XMP + bytes(70_000))
    kept, lost = carried(metadata, RESULT, "jpeg")
    assert (kept.exif, kept.xmp) == (None, None)
    assert lost == ["exif larger than a JPEG can hold left out", "xmp larger than a JPEG can hold left out"]
    assert carried(metadata, RESULT, "webp")[1] == []


def camera_block(size: int) -> bytes:
    text = b"x" * size
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x10E, 2, size, 26) + bytes(4) + text


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_jpeg_is_written_as_coarsely_as_the_input(subsampling):
    data = encoded(picture(), "JPEG", quality=71, subsampling=subsampling)
    found = decode_photograph(data)
    again = encode_photograph(Photograph(RESULT, "jpeg", jpeg=found.jpeg), quality=95)
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(again)) as after:
        assert after.quantization == before.quantization
        assert JpegImagePlugin.get_sampling(after) == subsampling


def test_heic_is_read_upright_with_its_metadata():
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    found = decode_photograph(encoded(picture(), "HEIF", exif=camera().tobytes()))
    assert found.pixels.shape == (48, 32, 3)
    assert exif_orientation(found.metadata.exif) == 1


def test_what_has_more_than_eight_bits_and_is_read_as_eight_is_said():
    pillow_heif = pytest.importorskip("pillow_heif")
    heif = pillow_heif.from_bytes("RGB;16", (16, 16), bytes(16 * 16 * 6))
    stream = io.BytesIO()
    heif.save(stream, quality=-1)
    assert decode_photograph(stream.getvalue()).notes == ("read as 8 bit; it has more",)
