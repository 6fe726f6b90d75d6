"""Whole pixels are read whatever lies around them; damaged ones are named; nothing but BadImageError comes out."""

from __future__ import annotations

import io
import resource
import struct
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.images import BadImageError, ifd
from pipeline.images import png as png_module
from pipeline.images.decode import decode_image, decode_photograph
from pipeline.images.exif import exif_orientation, upright
from pipeline.images.header import read_header
from pipeline.images.metadata import carried
from pipeline.images.parts import Metadata
from tests.unit.images.samples import chunk, encoded, picture, profile, with_all, with_chunks

PIXELS = picture()
PNG, JPEG, WEBP = encoded(PIXELS, "PNG"), encoded(PIXELS, "JPEG", quality=90), encoded(PIXELS, "WEBP", lossless=True)
PROGRESSIVE = encoded(PIXELS, "JPEG", quality=90, progressive=True)
LAST_SCAN = PROGRESSIVE.rindex(b"\xff\xda")
SCAN = JPEG.index(b"\xff\xda") + 14


def garbled(data: bytes, start: int, count: int) -> bytes:
    noise = np.random.default_rng(1).integers(1, 255, count, np.uint8).tobytes()
    return data[:start] + noise + data[start + count :]


def exif_entry(entry: bytes) -> bytes:
    """A JPEG whose EXIF block holds one entry as given."""
    block = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)
    return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + JPEG[2:]


def bomb(megabytes: int) -> bytes:
    import zlib

    return zlib.compress(bytes(megabytes << 20))


def several_parts(png: bytes) -> bytes:
    """The same PNG, its pixels in chunks of 2 bytes."""
    pixels = png[41:-16]
    return png[:33] + b"".join(chunk(b"IDAT", pixels[i : i + 2]) for i in range(0, len(pixels), 2)) + png[-12:]


WHOLE = {
    "JPEG without its end": JPEG[:-2],
    "JPEG that ends within its end marker": JPEG[:-1],
    "JPEG with bytes behind it": JPEG + b"hello" * 99,
    "JPEG padded with zeros": JPEG[:-2] + bytes(40) + b"\xff\xd9",
    "progressive JPEG without its end": PROGRESSIVE[:-2],
    "JPEG with a broken EXIF block": exif_entry(b""),
    "JPEG with an orientation of bytes": exif_entry(struct.pack("<HHII", 0x112, 1, 1, 6)),
    "JPEG with an orientation of text": exif_entry(struct.pack("<HHI4s", 0x112, 2, 4, b"abc\0")),
    "JPEG with two orientations": exif_entry(struct.pack("<HHIHH", 0x112, 3, 2, 6, 6)),
    "JPEG with an orientation out of range": exif_entry(struct.pack("<HHII", 0x112, 3, 1, 9)),
    "JPEG with an orientation elsewhere": exif_entry(struct.pack("<HHII", 0x112, 4, 9, 2**31)),
    "JPEG with half a colour profile": JPEG[:2] + b"\xff\xe2\x00\x14ICC_PROFILE\0\x01\x02abcd" + JPEG[2:],
    "JPEG with an unknown segment": JPEG[:2] + b"\xff\xef\x00\x04ab" + JPEG[2:],
    "PNG without its end": PNG[:-12],
    "PNG that ends within its end": PNG[:-5],
    "PNG that ends within the last check sum": PNG[:-14],
    "PNG without its end and three bytes of the check sum": PNG[:-19],
    "PNG without its end and its check sum": PNG[:-20],
    "PNG of many parts without its end and its check sum": several_parts(PNG)[:-20],
    "PNG with bytes behind it": PNG + bytes(500),
    "PNG with a wrong check sum of a text": with_chunks(PNG, chunk(b"tEXt", b"a\0b", wrong=1)),
    "PNG with a wrong check sum of a profile": with_chunks(PNG, chunk(b"iCCP", b"a\0\0" + b"junk", wrong=1)),
    "PNG with a large profile": encoded(PIXELS, "PNG", icc_profile=np.random.default_rng(0).bytes(3 << 20)),
    "PNG with a profile that is a bomb": with_chunks(PNG, chunk(b"iCCP", b"a\0\0" + bomb(400))),
    "PNG with a text that is a bomb": with_chunks(PNG, chunk(b"zTXt", b"a\0\0" + bomb(400))),
    "PNG with a packet that is a bomb": with_chunks(PNG, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb(400))),
    "PNG with junk of every kind": with_chunks(
        PNG, *(chunk(kind, b"\xff" * 7) for kind in (b"iCCP", b"eXIf", b"iTXt", b"gAMA", b"cHRM", b"sRGB", b"tIME"))
    ),
    "WebP with bytes behind it": WEBP + b"hello",
    "WebP with junk of every kind": WEBP[:12] + b"ICCP\x03\0\0\0abc\0EXIF\x01\0\0\0a\0XMP \x01\0\0\0a\0" + WEBP[12:],
}

DAMAGED = {
    "half a JPEG": JPEG[: len(JPEG) * 3 // 4],
    "half a JPEG with an end": JPEG[: len(JPEG) * 3 // 4] + b"\xff\xd9",
    "JPEG without its last bytes": JPEG[:-8],
    "garbled JPEG": garbled(JPEG, SCAN + 40, 60),
    "garbled progressive JPEG": garbled(PROGRESSIVE, LAST_SCAN - 60, 40),
    "progressive JPEG without its last scan": PROGRESSIVE[:LAST_SCAN],
    "JPEG without pixels": JPEG[: JPEG.index(b"\xff\xda")],
    "half a PNG": PNG[: len(PNG) // 2],
    "PNG without the last byte of its pixels": PNG[:-21],
    "PNG with a wrong end of its pixels' own check sum": PNG[:-18] + bytes([PNG[-18] ^ 1]) + PNG[-17:-16],
    "PNG with a wrong check sum of its pixels": PNG[:-13] + bytes([PNG[-13] ^ 1]) + PNG[-12:],
    "half a WebP": WEBP[: len(WEBP) // 2],
    "half an AVIF": encoded(PIXELS, "AVIF")[:-100],
    "half a BMP": encoded(PIXELS, "BMP")[:-1000],
    "half a TIFF": encoded(PIXELS, "TIFF")[:-1000],
    "BMP too wide for its decoder": encoded(Image.new("1", (1_100_000, 1)), "BMP"),
    "PNG too wide for its decoder": encoded(Image.new("L", (1_100_000, 1)), "PNG"),
    "TIFF whose next page is nowhere": None,
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_pixels_are_read_whatever_lies_around_them(name):
    expected = decode_image(
        {"J": JPEG, "j": PROGRESSIVE, "P": PNG, "W": WEBP}["j" if "progressive" in name else name[0]]
    )
    started = time.process_time()
    np.testing.assert_array_equal(decode_image(WHOLE[name]), expected)
    assert time.process_time() - started < 1
    if "without its end" in name:
        assert decode_photograph(WHOLE[name]).notes == ("its end is missing",)


def test_a_bomb_without_its_check_sum_is_not_unpacked():
    cut = PNG[:33] + chunk(b"IDAT", bomb(400)[:-4]) + PNG[-12:]
    started = time.process_time()
    assert png_module.with_check_sum(cut) == cut
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_pixels_are_named(name):
    data = DAMAGED[name]
    if data is None:
        tiff = encoded(PIXELS, "TIFF")
        end = struct.unpack("<I", tiff[4:8])[0]
        end += 2 + 12 * struct.unpack("<H", tiff[end : end + 2])[0]
        data = tiff[:end] + struct.pack("<I", 0x7FFFFF00) + tiff[end + 4 :]
    with pytest.raises(BadImageError, match=r"damaged|not a readable|a side of 1100000 pixels"):
        decode_photograph(data)


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "packbits"}])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_a_tiff_that_lacks_anything_of_its_pixels_or_its_palette_is_damaged(mode, options):
    """Its decoder's own directory is written behind it, and must not be read as what is missing."""
    data = encoded(Image.fromarray(PIXELS).convert(mode), "TIFF", **options)
    assert decode_photograph(data).pixels.shape[:2] == PIXELS.shape[:2]
    for cut in (1, 2, 20, 100, len(data) // 3):
        with pytest.raises(BadImageError, match=r"damaged"):
            decode_photograph(data[:-cut])


def test_a_file_that_lies_about_its_size_is_refused_by_it(monkeypatch):
    frame = JPEG.index(b"\xff\xc0") + 5
    huge = JPEG[:frame] + struct.pack(">HH", 60000, 60000) + JPEG[frame + 4 :]
    with pytest.raises(BadImageError, match="more than 178956970 pixels"):
        read_header(huge)


def test_a_jpeg_of_endless_scans_is_refused():
    scan = PROGRESSIVE[LAST_SCAN:-2]
    with pytest.raises(BadImageError, match="more than 100 scans"):
        read_header(PROGRESSIVE[:-2] + scan * 100 + b"\xff\xd9")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF", "HEIF", "LA", "16", "PROGRESSIVE"])
def test_mutated_files_raise_nothing_but_bad_image_error(kind):
    """Bytes set, cut, doubled and swapped at random; bounded in time and memory."""
    data = fuzzed_file(kind)
    random = np.random.default_rng(list(kind.encode()))
    before, started, read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time(), 0
    for _ in range(150 if kind in {"AVIF", "HEIF"} else 500):
        mutant = mutated(data, random)
        try:
            photograph = decode_photograph(mutant)
        except BadImageError:
            continue
        header = read_header(mutant)
        assert photograph.pixels.shape[:2] == (header.height, header.width)
        assert photograph.pixels.dtype in (np.uint8, np.uint16)
        read += 1
    assert read  # the mutations are small enough to tell something
    assert time.process_time() - started < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 << 20  # KiB


def fuzzed_file(kind: str) -> bytes:
    match kind:
        case "HEIF":
            pillow_heif = pytest.importorskip("pillow_heif")
            pillow_heif.register_heif_opener()
            return encoded(PIXELS, "HEIF")
        case "LA":
            return encoded(picture(9, 8, 2), "PNG", icc_profile=profile(b"GRAY"))
        case "16":
            return cv2.imencode(".tif", picture().astype(np.uint16) * 257)[1].tobytes()
        case "PROGRESSIVE":
            return PROGRESSIVE
        case "BMP":
            return encoded(PIXELS, "BMP")
    return with_all(kind)


_WORDS = [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    mutant = bytearray(data)
    # Headers are a small part of a file, and the part that readers stumble over.
    reach = len(mutant) if random.random() < 0.3 else min(len(mutant), 300)
    for _ in range(random.integers(1, 5)):
        place = int(random.integers(0, reach))
        match random.integers(0, 5):
            case 0:
                mutant[place % len(mutant)] = random.integers(0, 256)
            case 1:
                mutant[place : place + 4] = random.choice(
                    [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]
                )
            case 2:
                del mutant[place : place + int(random.integers(1, 20))]
            case 3:
                mutant[place:place] = mutant[place : place + int(random.integers(1, 40))]
            case 4:
                mutant[place % len(mutant)] ^= 1 << int(random.integers(0, 8))
        reach = min(reach, len(mutant))
    return bytes(mutant)


def test_every_reader_survives_no_bytes_and_a_few():
    for start in (
        b"",
        b"BM",
        b"\xff\xd8",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\0\0\0\0WEBP",
        b"II*\0",
        b"MM\0+",
        b"\0\0\0\x20ftypavif",
    ):
        for more in (b"", b"\0", bytes(40), b"\xff" * 40):
            with pytest.raises(BadImageError):
                decode_photograph(start + more)


def test_other_formats_are_named():
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "GIF")
    with pytest.raises(BadImageError, match="GIF is not supported; use PNG, JPEG"):
        read_header(stream.getvalue())


# Of the next files each would take hours, or all memory, if the work grew faster than the file.


@pytest.mark.parametrize(
    "piece",
    [b"<xmp:Thumbnails ", b" ", b"xmpNote:HasExtendedXMP ", b"xmpNote:HasExtendedXMP=\" ' ", b"tiff:ImageWidth=' "],
)
def test_a_packet_of_one_piece_is_searched_in_linear_time(piece):
    packet = piece * (2**21 // len(piece))
    kept = carried(Metadata(xmp=packet), PIXELS, "png")[0].xmp
    assert kept is not None
    assert kept == packet or b'="' in packet


def test_a_thumbnail_without_an_end_is_kept_with_all_behind_it():
    packet = b"<a/><xmp:Thumbnails>x</xmp:Thumbnails><b/> <c xmpNote:HasExtendedXMP='9'/><xmp:Thumbnails>y<d/>"
    kept = carried(Metadata(xmp=packet), PIXELS, "png")[0].xmp
    assert kept == b"<a/><b/> <c /><xmp:Thumbnails>y<d/>"


def block(entries: bytes, behind: bytes = b"") -> bytes:
    """An EXIF block with these entries."""
    return b"II*\0" + struct.pack("<IH", 8, len(entries) // 12) + entries + bytes(4) + behind


def test_values_that_lie_over_each_other_are_no_more_than_the_block():
    entries = b"".join(struct.pack("<HHII", 0xB000 + i, 7, 2**16, 8) for i in range(16_000))
    hostile = block(entries, bytes(2**16))
    fitted = upright(hostile, 6, 4)
    assert 2**16 < len(fitted) < 2 * len(hostile)
    assert exif_orientation(hostile) == 1


def test_of_many_pointers_to_a_directory_the_first_of_a_tag_is_followed(monkeypatch):
    read, depths = ifd._read, []

    def count(data: bytes, order: str, at: int, budget: list[int], depth: int) -> ifd.Directory:
        depths.append(depth)
        return read(data, order, at, budget, depth)

    monkeypatch.setattr(ifd, "_read", count)
    pointers = [struct.pack("<HHII", tag, 4, 1, 8) for tag in (ifd.EXIF, ifd.GPS, ifd.INTEROPERABILITY)]
    ifd.read_directory(block(b"".join(pointers * 100)))
    assert 4 <= len(depths) <= 1 + 3 + 9


def test_a_tiff_gives_its_decoder_no_values_that_it_does_not_need():
    plain = encoded(PIXELS[..., 0], "TIFF")
    (first,) = struct.unpack_from("<I", plain, 4)
    (count,) = struct.unpack_from("<H", plain, first)
    entries = plain[first + 2 : first + 2 + 12 * count]
    entries += b"".join(struct.pack("<HHII", 0xB000 + i, 7, len(plain), 0) for i in range(4000))
    directory = struct.pack("<H", len(entries) // 12) + entries + bytes(4)
    hostile = plain[:4] + struct.pack("<I", len(plain)) + plain[8:] + directory
    parts = read_header(hostile)
    assert len(parts.stream) < len(hostile) + 300
    (first,) = struct.unpack_from("<I", parts.stream, 4)
    assert struct.unpack_from("<H", parts.stream, first)[0] <= count
    np.testing.assert_array_equal(decode_photograph(hostile).pixels, PIXELS[..., 0])


def test_of_many_chunks_of_a_kind_the_first_alone_is_unpacked(monkeypatch):
    unpacked = []

    def count(packed: bytes, most: int, what: str, notes: list[str]) -> None:
        unpacked.append(what)

    monkeypatch.setattr(png_module, "_inflated", count)
    chunks = [chunk(b"iCCP", b"x\0\0" + b"packed"), chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0packed")]
    read_header(with_chunks(PNG, *chunks * 50))
    assert unpacked == ["colour profile", "XMP packet"]


def test_damaged_chunks_are_told_in_a_few_words_whatever_they_are_called():
    def told(*kinds: bytes) -> tuple[str, ...]:
        return read_header(with_chunks(PNG, *(chunk(kind, b"", wrong=1) for kind in kinds))).notes

    assert told(b"tEXt", b"tEXt") == ("damaged chunk tEXt left out",)
    assert told(b"a\r\nb", b"a\x1b[2") == (r"damaged chunks a\r\nb, a\x1b[2 left out",)
    assert told(*(b"a%03d" % i for i in range(900))) == ("damaged chunks a000, a001, a002 and 897 more left out",)


def test_a_first_chunk_that_is_refused_counts():
    good = chunk(b"iCCP", b"x\0\0" + bomb(1))
    large = chunk(b"iCCP", b"x\0\0" + bomb(17))
    parts = read_header(with_chunks(PNG, large, good))
    assert (parts.metadata.icc, parts.notes) == (None, ("colour profile of more than 16 MiB left out",))
    assert read_header(with_chunks(PNG, good, large)).metadata.icc == bytes(2**20)


@pytest.mark.parametrize("order", "<>")
def test_pages_of_a_big_tiff_are_counted_no_further_than_they_tell(order):
    pages = b"".join(struct.pack(f"{order}QQ", 0, 16 * (i + 2)) for i in range(100_000))
    head = (b"II+\0\x08\0\0\0" if order == "<" else b"MM\0+\0\x08\0\0") + struct.pack(f"{order}Q", 16)
    with pytest.raises(BadImageError, match="multi-page"):
        read_header(head + pages)


def test_of_every_further_page_one_tag_is_looked_at(monkeypatch):
    """Seventeen directories of 65,535 tags without sense, one upon another, would take a second."""
    unpacked, looked_at = struct.unpack_from, []
    monkeypatch.setattr(ifd.struct, "unpack_from", lambda *given: (looked_at.append(given[0]), unpacked(*given))[1])
    tags, pages = 1000, 17
    starts = [8 + page * (6 + 12 * tags) for page in range(pages)]
    body = b"".join(
        struct.pack("<H", tags) + bytes(12 * tags) + struct.pack("<I", following) for following in [*starts[1:], 0]
    )
    with pytest.raises(BadImageError, match=r"multi-page \(17 frames\)"):
        read_header(b"II*\0\x08\0\0\0" + body)
    assert looked_at.count("<HHI") <= tags + pages


def test_a_big_tiff_is_read_with_its_metadata():
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    data = encoded(PIXELS, "TIFF", big_tiff=True, tiffinfo=exif, icc_profile=profile(b"RGB "))
    assert data[:4] == b"II+\0"
    photograph = decode_photograph(data)
    np.testing.assert_array_equal(photograph.pixels, np.rot90(PIXELS, -1))
    assert photograph.metadata.icc == profile(b"RGB ")
    assert b"Maker" in (photograph.metadata.exif or b"")


def test_numbers_of_64_bits_become_such_of_32():
    """A classic directory knows no others; what does not fit lies outside of any file."""
    wide = {0x0100: ifd.Value(16, 2, struct.pack("<QQ", 7, 2**40)), 0x0101: ifd.Value(17, 1, struct.pack("<q", -5))}
    found = ifd.narrowed(wide | {0x8769: wide}, "<")
    for place in (found, found[0x8769]):
        assert place[0x0100] == ifd.Value(4, 2, struct.pack("<II", 7, 2**32 - 1))
        assert place[0x0101] == ifd.Value(9, 1, struct.pack("<i", -5))
