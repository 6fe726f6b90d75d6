"""Readers of kernels in NumPy, MATLAB and picture files. Nothing is unpickled."""

from __future__ import annotations

import io
import itertools
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from kernels_bank.runtime.errors import ArtefactError, BadRequestError

_PNG = b"\x89PNG\r\n\x1a\n"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_MOST_VALUES = 2**26  # limit of values read into memory: 126,000 kernels of 23 x 23, half a GiB of float64
MOST_BYTES = 8 * _MOST_VALUES + 2**16  # limit of a file: as many values of float64, and a header
_BLOCK = 1 << 20  # bytes unpacked at a time
_COMPRESSED = 15  # type of a compressed element in a MATLAB file
_NUMBERS = {"single", "double", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
_WANTED = "a numeric array (k, k, N) or a cell array of numeric (k, k) is expected"

Arrays = np.ndarray | list[np.ndarray]  # one array to split, or a list of kernels


def read_npy(data: bytes) -> Arrays:
    """Read a .npy file."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = header(stream)
    refuse_large(shape)
    if kind.hasobject:
        raise ValueError("it holds Python objects; real numbers are expected")
    stream.seek(0)
    array = np.asarray(np.load(stream, allow_pickle=False))
    if stream.read(1):
        raise ArtefactError("more follows after its array, as from two calls of np.save; save one array (N, k, k)")
    return array


def read_npz(data: bytes) -> Arrays:
    """Read the array `kernels`, or the only array, of a .npz file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename.removesuffix(".npy"), info) for info in archive.infolist()]
        info = dict(members)[_only(name for name, _ in members)]
        if info.file_size > MOST_BYTES:
            raise ArtefactError(f"{info.filename} has {info.file_size / 2**30:.1f} GiB unpacked, too many for kernels")
        return read_npy(archive.read(info))


def read_png(data: bytes) -> Arrays:
    """Read a grey picture, 8 or 16 bit. Raises ArtefactError for one that is not that alone."""
    from PIL import Image

    if not data.startswith(_PNG):
        raise ArtefactError("this is no PNG, whatever its name; save the picture as PNG, or the values as .npy")
    with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
        refuse_large((picture.height, picture.width))
        if (frames := getattr(picture, "n_frames", 1)) > 1:
            raise ArtefactError(f"one picture is expected; this one is animated ({frames} frames)")
        if picture.mode.startswith("I") or picture.mode in {"1", "L"}:
            grey = np.asarray(picture, dtype=np.float64)
            if (grey == picture.info.get("transparency", -1)).any():
                raise ArtefactError("a grey picture is expected; this one has transparent pixels")
            return [grey]
        if data[24] == 16:
            raise ArtefactError("16-bit colours, of which 8 bits would be read; convert the picture to grey")
        pixels = np.asarray(picture.convert("RGBA"), dtype=np.float64)
    if (pixels[..., :3] != pixels[..., :1]).any() or (pixels[..., 3] != 255).any():
        raise ArtefactError("a grey picture is expected; this one has colours or transparent pixels")
    return [pixels[..., 0]]


def read_mat(data: bytes) -> Arrays:
    """Read the variable `kernels`, or the only variable, of a MATLAB file."""
    # MATLAB 7.3 files are HDF5 after a header of 512 bytes; other programs write no header.
    if _HDF5 in (data[:8], data[512:520]):
        return _read_mat_hdf5(data)
    from scipy import io as scipy_io

    def stream() -> Any:  # noqa: ANN401 - SciPy's stubs know paths only
        return io.BytesIO(data)

    variables = [(name, (shape, kind)) for name, shape, kind in scipy_io.whosmat(stream()) if not name.startswith("__")]
    name = _only(name for name, _ in variables)
    shape, kind = dict(variables)[name]
    if kind not in _NUMBERS | {"cell"}:
        raise ArtefactError(f"the variable '{name}' is of MATLAB's class {kind}; {_WANTED}")
    refuse_large(shape)
    # A value takes at least a byte, whatever its type in the array.
    _refuse_unpacking_to_more(data, than=_MOST_VALUES if kind == "cell" else MOST_BYTES)
    # With MATLAB's own types, since otherwise a logical array in a cell would become numbers.
    value = scipy_io.loadmat(stream(), variable_names=[name], mat_dtype=kind == "cell")[name]
    return [_cell(item, i) for i, item in enumerate(value.ravel(), start=1)] if kind == "cell" else np.asarray(value)


def _refuse_unpacking_to_more(data: bytes, than: int) -> None:
    """Refuse a classic MATLAB file with a variable that unpacks to more bytes. Raises ArtefactError.

    The outer shape of a cell array does not reveal the size of its cells.
    """
    if 0 in data[:4]:
        return  # MATLAB 4, which has neither cells nor compression
    order = "<" if data[126:128] == b"IM" else ">"
    start = 128
    while start + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, start)
        start += 8
        if (_unpacked_bytes(data[start : start + size], than) if kind == _COMPRESSED else size) > than:
            raise ArtefactError(
                f"a variable unpacks to more than {than / 2**20:.0f} MiB, too many for kernels; save these alone, "
                "as an array"
            )
        start += size


def _unpacked_bytes(packed: bytes, most: int) -> int:
    """Return the unpacked size in bytes without holding the content; if it exceeds `most`, any larger number."""
    unpacker, total = zlib.decompressobj(), 0
    for start in range(0, len(packed), _BLOCK):
        part = packed[start : start + _BLOCK]
        while part and total <= most:
            total += len(unpacker.decompress(part, _BLOCK))
            part = unpacker.unconsumed_tail
    return total


def _read_mat_hdf5(data: bytes) -> Arrays:
    try:
        import h5py
    except ImportError as error:
        raise BadRequestError("is a MATLAB 7.3 (HDF5) file, which needs the package h5py: pip install h5py") from error
    with h5py.File(io.BytesIO(data), "r") as file:
        # Links to other files are not followed.
        inside = [n for n in file if not n.startswith("#") and isinstance(file.get(n, getlink=True), h5py.HardLink)]
        name = _only(inside)
        node = file[name]
        kind = _class(node)
        if isinstance(node, h5py.Group) or (kind and kind not in _NUMBERS | {"cell"}):
            kind = "sparse" if "MATLAB_sparse" in node.attrs else kind or "struct"
            raise ArtefactError(f"the variable '{name}' is of MATLAB's class {kind}; {_WANTED}")
        if h5py.check_ref_dtype(node.dtype) is not None:
            references = _values(node).ravel()
            refuse_large((sum(_size(file, reference) for reference in references),))
            return [_referenced(file, reference, i) for i, reference in enumerate(references, start=1)]
        return _values(node)


def _class(node: Any) -> str:  # noqa: ANN401 - an HDF5 node
    """Return MATLAB's class of a variable; empty in files of other programs."""
    kind = node.attrs.get("MATLAB_class", b"")
    return kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind)


def _size(file: Any, reference: Any) -> int:  # noqa: ANN401 - h5py's
    """Return the number of values in a cell."""
    return (getattr(file[reference], "size", 0) or 0) if reference else 0


def _referenced(file: Any, reference: Any, number: int) -> np.ndarray:  # noqa: ANN401 - h5py's
    """Return the content of a cell."""
    if not reference:
        raise ArtefactError(f"cell {number} holds nothing; {_WANTED}")
    node = file[reference]
    if (kind := _class(node)) and kind not in _NUMBERS:
        raise ArtefactError(f"cell {number} is of MATLAB's class {kind}; {_WANTED}")
    return _cell(_values(node), number)


def _values(node: Any) -> np.ndarray:  # noqa: ANN401 - an HDF5 node
    """Return a data set in MATLAB's order of axes; MATLAB stores columns first, so every array is transposed."""
    if not hasattr(node, "dtype"):
        raise ArtefactError(f"a cell holds something else than numbers; {_WANTED}")
    if "MATLAB_empty" in node.attrs or node.shape is None:
        return np.zeros((0, 0))
    if node.external or node.is_virtual:
        raise ArtefactError("its values lie in other files, which are not read")
    refuse_large(node.shape)
    return np.asarray(node).T


def _cell(item: np.ndarray, number: int) -> np.ndarray:
    if not isinstance(item, np.ndarray) or item.dtype.kind not in "iufc":
        raise ArtefactError(f"cell {number} holds something else than numbers; {_WANTED}")
    return item


def _only(names: Iterable[str]) -> str:
    """Return the name `kernels`, or the only name. Raises ArtefactError, also where it stands for two arrays."""
    names = sorted(names)
    if twice := [name for name, other in itertools.pairwise(names) if name == other]:
        raise ArtefactError(f"has more than one variable '{twice[0]}'; give each another name")
    if "kernels" in names:
        return "kernels"
    if len(names) != 1:
        raise ArtefactError(f"has the variables {', '.join(names) or '(none)'}; name one of them 'kernels'")
    return names[0]


def refuse_large(shape: tuple[int, ...]) -> None:
    """Refuse an array that takes more memory than kernels need. Raises ArtefactError."""
    if math.prod(shape) > _MOST_VALUES:
        raise ArtefactError(f"an array of shape {shape} is too large for kernels")


READERS: dict[str, Callable[[bytes], Arrays]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".mat": read_mat,
    ".png": read_png,
}
