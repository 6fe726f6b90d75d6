"""Tag directories of TIFF and EXIF: bounded reading, changes, and writing."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}  # by a TIFF's or BigTIFF's first bytes
EXIF, GPS, INTEROPERABILITY, MAKER_NOTE = 0x8769, 0x8825, 0xA005, 0x927C
_POINTERS = {EXIF, GPS, INTEROPERABILITY}
SHORT, LONG, UNDEFINED, IFD, LONG8, IFD8 = 3, 4, 7, 13, 16, 18
_SLONG, _SLONG8 = 9, 17
# Bytes of one value by its type: byte, text, short, long, rational, ... ; then bytes of its unit of byte order.
_SIZE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WORD = {**_SIZE, 5: 4, 10: 4}
_NUMBER = {SHORT: "H", LONG: "I", IFD: "I", LONG8: "Q", IFD8: "Q"}
_NARROW = {LONG8: (LONG, "u"), _SLONG8: (_SLONG, "i"), IFD8: (IFD, "u")}  # with NumPy's letter
_MOST_BYTES = 32 * 2**20  # limit for all values together
_MOST_TAGS = 2**16 - 1  # limit for a directory


class _Layout(NamedTuple):
    """Hold the widths of the numbers in a directory."""

    first: int  # position of the offset of the first directory
    length: str  # format of the number of entries
    number: str  # format of the number of values and of positions
    inline: int  # most bytes of a value that is stored in its entry
    entry: int  # bytes of an entry


_CLASSIC, _BIG = _Layout(4, "H", "I", 4, 12), _Layout(8, "Q", "Q", 8, 20)


class Value(NamedTuple):
    """Hold the values of one tag."""

    kind: int
    number: int
    data: bytes  # in the directory's byte order
    at: int = -1  # position in the file that it was read from


Directory = dict[int, "Value | Directory"]  # a nested directory is stored under the tag that points to it


class BrokenDirectoryError(ValueError):
    """Report that a tag directory is invalid or outside of its file."""


def byte_order(data: bytes) -> str:
    """Return `<` or `>`, the byte order of a TIFF structure. Raises BrokenDirectoryError."""
    order = BYTE_ORDERS.get(data[:4])
    if order is None or len(data) < 8:
        raise BrokenDirectoryError("not a TIFF structure")
    return order


def first_directory(data: bytes) -> int:
    """Return the position of a TIFF structure's first directory. Raises BrokenDirectoryError."""
    layout = _layout(data)
    return _integer_at(data, layout.first, layout.number)


def next_directory(data: bytes, at: int) -> int:
    """Return the position of the directory after the one at `at`, 0 after the last. Raises BrokenDirectoryError."""
    layout = _layout(data)
    count = _integer_at(data, at, layout.length)
    return _integer_at(data, at + struct.calcsize(layout.length) + layout.entry * count, layout.number)


def _layout(data: bytes) -> _Layout:
    return _BIG if b"+" in data[2:4] else _CLASSIC


def _integer_at(data: bytes, at: int, kind: str) -> int:
    kind = byte_order(data) + kind
    if at + struct.calcsize(kind) > len(data):
        raise BrokenDirectoryError("a directory lies outside of the file")
    return int(struct.unpack_from(kind, data, at)[0])


def read_directory(data: bytes, at: int | None = None) -> Directory:
    """Read a directory and those that it points to; invalid tags are left out.

    Values may overlap, but their total length is limited to that of the structure; the rest is left out.

    Args:
        data: a TIFF structure: an EXIF block, a TIFF or BigTIFF file.
        at: position of the directory; by default the first.

    Raises:
        BrokenDirectoryError: the outermost directory cannot be read.
    """
    budget = [min(len(data), _MOST_BYTES)]
    return _read(data, byte_order(data), first_directory(data) if at is None else at, budget, depth=0)


def _read(data: bytes, order: str, at: int, budget: list[int], depth: int) -> Directory:
    found: Directory = {}
    for tag, value in _values(data, order, at):
        budget[0] -= len(value.data)
        if budget[0] < 0:
            break
        if tag in found:  # prevents also many pointers to one large directory
            continue
        if tag not in _POINTERS:
            found[tag] = value
        elif depth < 2 and (place := as_integer(value, order)) is not None:
            try:
                found[tag] = _read(data, order, place, budget, depth + 1)
            except BrokenDirectoryError:
                continue
    return found


def first_tag(data: bytes, at: int) -> tuple[int, Value] | None:
    """Return the first tag of a directory, the smallest one; None if it makes no sense. Raises BrokenDirectoryError."""
    return next(_values(data, byte_order(data), at, most=1), None)


def _values(data: bytes, order: str, at: int, most: int = _MOST_TAGS) -> Iterator[tuple[int, Value]]:
    layout = _layout(data)
    count = min(_integer_at(data, at, layout.length), most)
    first = at + struct.calcsize(layout.length)
    for place in range(first, min(first + layout.entry * count, len(data) - layout.entry + 1), layout.entry):
        tag, kind, number = struct.unpack_from(f"{order}HH{layout.number}", data, place)
        size = _SIZE.get(kind, 0) * number
        start = place + layout.entry - layout.inline
        if size > layout.inline:
            (start,) = struct.unpack_from(f"{order}{layout.number}", data, start)
        if size and start + size <= len(data):
            yield tag, Value(kind, number, data[start : start + size], start)


def as_integer(value: Value | Directory | None, order: str) -> int | None:
    """Return the single short, long or position of a tag; None if it is something else."""
    if not isinstance(value, Value) or value.number != 1 or value.kind not in _NUMBER:
        return None
    return int(struct.unpack(f"{order}{_NUMBER[value.kind]}", value.data)[0])


def as_numbers(value: Value | Directory | None, order: str) -> np.ndarray:
    """Return the shorts, longs or positions of a tag as float64; none if it is something else."""
    if not isinstance(value, Value) or value.kind not in _NUMBER:
        return np.zeros(0)
    return np.frombuffer(value.data, f"{order}u{_SIZE[value.kind]}").astype(np.float64)


def integer(value: int, order: str, kind: int = LONG) -> Value:
    """Make a tag's value from a single short or long."""
    return Value(kind, 1, struct.pack(f"{order}{'H' if kind == SHORT else 'I'}", value))


def swapped(directory: Directory) -> Directory:
    """Return a directory in the other byte order."""
    return {
        tag: value._replace(data=np.frombuffer(value.data, f"u{_WORD[value.kind]}").byteswap().tobytes())
        if isinstance(value, Value)
        else swapped(value)
        for tag, value in directory.items()
    }


def narrowed(directory: Directory, order: str) -> Directory:
    """Convert a BigTIFF's directory from 64-bit to 32-bit numbers; larger positions are outside of any file."""
    return {
        tag: _narrow(value, order) if isinstance(value, Value) else narrowed(value, order)
        for tag, value in directory.items()
    }


def _narrow(value: Value, order: str) -> Value:
    if value.kind not in _NARROW:
        return value
    kind, letter = _NARROW[value.kind]
    bounds = np.iinfo(f"{letter}4")
    numbers = np.frombuffer(value.data, f"{order}{letter}8").clip(bounds.min, bounds.max)
    return Value(kind, value.number, numbers.astype(f"{order}{letter}4").tobytes())


def header(order: str, first: int) -> bytes:
    """Return the header of a TIFF structure whose first directory is at `first`."""
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", first)


def write_directory(directory: Directory, at: int, order: str, standing: Value | None = None) -> bytes:
    """Return the bytes of a directory with its values and nested directories.

    Args:
        directory: tags to write.
        at: even position in the file for the bytes.
        order: byte order of the file.
        standing: a value whose data is already in the file, at its own position.
    """
    head = 2 + 12 * len(directory) + 4
    entries, body = [struct.pack(f"{order}H", len(directory))], bytearray()
    for tag, value in sorted(directory.items()):
        place = at + head + len(body)
        if not isinstance(value, Value):
            entries.append(struct.pack(f"{order}HHII", tag, LONG, 1, place))
            body += write_directory(value, place, order, standing)
        elif value is standing:
            entries.append(struct.pack(f"{order}HHII", tag, value.kind, value.number, value.at))
        elif len(value.data) <= 4:
            entries.append(struct.pack(f"{order}HHI4s", tag, value.kind, value.number, value.data))
        else:
            entries.append(struct.pack(f"{order}HHII", tag, value.kind, value.number, place))
            body += value.data
        body += b"\0" * (len(body) % 2)
    return b"".join([*entries, bytes(4), body])
