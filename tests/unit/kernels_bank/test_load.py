"""Kernels from the files of others: every kind gives the same kernels, and what is wrong is said."""

from __future__ import annotations

import io
import sys
import warnings
import zipfile
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from PIL import Image
from scipy import io as scipy_io
from scipy.sparse import csc_matrix

from kernels_bank import kernel_files, load_kernels, sample_motion
from kernels_bank.reduction import reduction_line
from kernels_bank.runtime.errors import ArtefactError, BadRequestError

KERNELS = sample_motion(3, 9, rng=np.random.default_rng(0))


def cells(kernels: list[np.ndarray]) -> np.ndarray:
    """A MATLAB cell array."""
    row = np.empty((1, len(kernels)), dtype=object)
    row[0] = [*kernels]
    return row


def mat(path: Path, array: np.ndarray) -> None:
    """As MATLAB writes a variable today: compressed."""
    scipy_io.savemat(path, {"kernels": array}, do_compression=True)


def hdf5_cells(path: Path, kernels: list[np.ndarray]) -> None:
    """As MATLAB 7.3 writes a cell array: references to transposed arrays under #refs#."""
    with h5py.File(path, "w") as file:
        stored = [file.create_dataset(f"#refs#/{i}", data=k.T) for i, k in enumerate(kernels)]
        references = np.array([[item.ref for item in stored]], dtype=h5py.ref_dtype).T
        file.create_dataset("kernels", data=references)


def frames(path: Path) -> None:
    """An animated picture."""
    first, second = (Image.fromarray(np.eye(5, dtype=np.uint8) * value) for value in (1, 2))
    first.save(path, save_all=True, append_images=[second])


def twice(path: Path) -> None:
    """An archive with two arrays of one name."""
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings(action="ignore"):
        for kernel in KERNELS[:2]:
            data = io.BytesIO()
            np.save(data, kernel)
            archive.writestr("kernels.npy", data.getvalue())


WRITERS = {
    "a.npy": lambda path: np.save(path, KERNELS),
    "named.npz": lambda path: np.savez(path, kernels=KERNELS, other=np.zeros(3)),
    "only.npz": lambda path: np.savez(path, anything=KERNELS),
    "cell.mat": lambda path: scipy_io.savemat(path, {"kernels": cells(list(KERNELS))}),
    "array.mat": lambda path: scipy_io.savemat(path, {"k": np.moveaxis(KERNELS, 0, 2)}),
    "hdf5.mat": lambda path: hdf5_cells(path, list(KERNELS)),
    "hdf5-array.mat": lambda path: h5py.File(path, "w").create_dataset("kernels", data=KERNELS.transpose(0, 2, 1)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_gives_the_same_kernels(tmp_path, name):
    WRITERS[name](tmp_path / name)
    loaded = load_kernels(f"file://{tmp_path}/{name}")
    assert loaded.dtype == np.float32
    np.testing.assert_allclose(loaded, KERNELS, atol=1e-7)


@pytest.mark.parametrize("bits", [8, 16])
def test_pictures(tmp_path, bits):
    top = 2**bits - 1
    values = np.rint(KERNELS[0] / KERNELS[0].max() * top).astype(np.uint8 if bits == 8 else np.uint16)
    Image.fromarray(values).save(tmp_path / "k.PNG")
    loaded = load_kernels(tmp_path / "k.PNG")
    np.testing.assert_allclose(loaded[0], values / values.sum(dtype=np.float64), atol=1e-7)


def test_values_become_a_kernel_of_float32(tmp_path):
    """Unnormalised, negative lobes, float64, one kernel without a first axis."""
    raw = KERNELS[0].astype(np.float64) * 255
    raw[0, 0] = -3
    np.save(tmp_path / "k.npy", raw)
    np.testing.assert_allclose(load_kernels(tmp_path / "k.npy")[0], raw / raw.sum(), atol=1e-7)


@pytest.mark.parametrize("reduction", ["bicubic", "lanczos"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_kernel_of_blur_and_reduction_comes_back_with_its_lobes(tmp_path, reduction, scale):
    line = reduction_line(reduction, scale, "centre")
    made = np.outer(line, line).astype(np.float32)
    np.save(tmp_path / "k.npy", made)
    np.testing.assert_allclose(load_kernels(tmp_path / "k.npy")[0], made, atol=1e-7)


def test_other_sides_keep_their_origin(tmp_path):
    """The origin of a (k, k) kernel is (k // 2, k // 2), also of an even one; all land on one middle pixel."""
    odd, even, flat = np.zeros((5, 5)), np.zeros((4, 4)), np.zeros((3, 7))
    odd[2, 2] = even[2, 2] = flat[1, 3] = 1
    scipy_io.savemat(tmp_path / "k.mat", {"kernels": cells([odd, even, flat])})
    loaded = load_kernels(tmp_path / "k.mat")
    assert loaded.shape == (3, 7, 7)
    assert (loaded[:, 3, 3] == 1).all()


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("none.npy", lambda path: None, "no such file"),
        ("k.txt", lambda path: path.write_text("1"), "unknown kind of kernel file '.txt'"),
        ("k.npy", lambda path: path.write_bytes(b"hello"), "cannot be read as .npy"),
        ("k.npy", lambda path: np.save(path, np.array([{}], dtype=object)), "cannot be read as .npy"),
        ("k.npy", lambda path: np.save(path, np.zeros((2, 5, 5))), "kernel 1: has no positive value"),
        (
            "k.npy",
            lambda path: np.save(path, np.full((5, 5), np.nan)),
            "kernel 1: some of its values are infinite or no",
        ),
        ("k.npy", lambda path: np.save(path, np.zeros((2, 3, 4))), r"shape \(2, 3, 4\) holds no kernels"),
        ("k.npy", lambda path: np.save(path, np.zeros((0, 5, 5))), "holds no kernels"),
        ("k.npz", lambda path: np.savez(path, a=KERNELS, b=KERNELS), "has the variables a, b; name one"),
        ("k.mat", lambda path: path.write_bytes(b"MATLAB"), "cannot be read as .mat"),
        ("k.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "cannot be read as .png"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(BadRequestError, match=message) as error:
        load_kernels(tmp_path / name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


K = np.outer(np.hanning(17)[1:-1], np.hanning(17)[1:-1])  # 15 x 15, and 225 is a square


def struct(path: Path) -> None:
    scipy_io.savemat(path, {"kernels": {"k": K}})


def hdf5_struct(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("kernels").create_dataset("k", data=K)


def npy(array: np.ndarray) -> bytes:
    """Return what `np.save` writes."""
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


def hdf5_text(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("kernels", data=np.zeros((3, 1), np.uint16)).attrs["MATLAB_class"] = np.bytes_("char")


def hdf5_elsewhere(path: Path) -> None:
    with h5py.File(path.with_name("other.h5"), "w") as file:
        file.create_dataset("k", data=K)
    with h5py.File(path, "w") as file:
        file["kernels"] = h5py.ExternalLink("other.h5", "/k")


def huge_header(path: Path) -> None:
    header = {"descr": "<f8", "fortran_order": False, "shape": (2**20, 2**20)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        (
            "flat.npy",
            lambda path: np.save(path, np.stack([K.ravel()] * 12)),
            r"or as 12 .* 15 x 15, its rows",
        ),
        ("flat.npz", lambda path: np.savez(path, np.stack([K.ravel()] * 7, 1)), "7 flattened .* 15 x 15, its columns"),
        ("flat.mat", lambda path: scipy_io.savemat(path, {"k": np.ones((9, 4))}), "4 flattened ones of 3 x 3"),
        ("rows.npy", lambda path: np.save(path, np.full((25, 25), 1 / 25)), "25 flattened ones of 5 x 5, its rows"),
        ("both.npy", lambda path: np.save(path, np.eye(25)), r"reshape it to \(25, 5, 5\), or fill"),
        ("cube.npy", lambda path: np.save(path, np.ones((5, 5, 5))), r"as \(N, k, k\) or as \(k, k, N\)"),
        ("cube.npz", lambda path: np.savez(path, np.ones((1, 7, 7, 7))), r"as \(N, k, k\) or as \(k, k, N\)"),
        ("struct.mat", struct, "the variable 'kernels' is of MATLAB's class struct; a numeric array"),
        ("struct73.mat", hdf5_struct, "the variable 'kernels' is of MATLAB's class struct; a numeric array"),
        ("text.mat", lambda path: scipy_io.savemat(path, {"kernels": "gauss"}), "MATLAB's class char; a numeric"),
        ("text73.mat", hdf5_text, "MATLAB's class char; a numeric"),
        ("mask.mat", lambda path: scipy_io.savemat(path, {"k": K > 0.5}), "MATLAB's class logical; a numeric"),
        ("sparse.mat", lambda path: scipy_io.savemat(path, {"k": csc_matrix(K)}), "MATLAB's class sparse; a numeric"),
        (
            "inner.mat",
            lambda path: scipy_io.savemat(path, {"k": cells([K, cells([K])])}),
            "cell 2 holds",
        ),
        ("logical.mat", lambda path: scipy_io.savemat(path, {"k": cells([K, K > 0.1])}), "cell 2 holds something else"),
        ("words.mat", lambda path: scipy_io.savemat(path, {"k": cells(["a", "b"])}), "cell 1 holds something else"),
        (
            "empty.mat",
            lambda path: scipy_io.savemat(path, {"k": cells([K, np.zeros((0, 0))])}),
            r"kernel 2: a \(k, k\) array",
        ),
        (
            "complex.mat",
            lambda path: scipy_io.savemat(path, {"k": K + 1j}),
            "real numbers .*complex128",
        ),
        ("elsewhere.mat", hdf5_elsewhere, "has the variables .none."),
        ("complex.npy", lambda path: np.save(path, K + 0j), "real numbers .*complex128"),
        ("bool.npy", lambda path: np.save(path, K > 0.5), "real numbers are expected, got .*bool"),
        ("words.npy", lambda path: np.save(path, np.array([["a", "b"]])), "real numbers are expected, got .*U1"),
        (
            "infinite.npy",
            lambda path: np.save(path, np.where(K.max() == K, np.inf, K)),
            "kernel 1: some of its values are infinite",
        ),
        ("large.npy", lambda path: np.save(path, np.full((3, 3), 1e308)), "values are too large"),
        (
            "largest.npy",
            lambda path: np.save(path, np.full((9, 9), np.finfo(np.longdouble).max)),
            "values are too large",
        ),
        (
            "lobes.npy",
            lambda path: np.save(path, np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]])),
            "negative values of 80%",
        ),
        ("negative.npy", lambda path: np.save(path, -K), "has no positive value"),
        ("colour.png", lambda path: Image.new("RGB", (5, 5), (9, 0, 0)).save(path), "a grey picture is expected"),
        ("clear.png", lambda path: Image.new("LA", (5, 5), (9, 8)).save(path), "a grey picture is expected"),
        (
            "key.png",
            lambda path: Image.fromarray(np.eye(5, dtype=np.uint8) * 9).save(path, transparency=9),
            "has transparent pixels",
        ),
        (
            "deep.png",
            lambda path: path.write_bytes(cv2.imencode(".png", np.full((5, 5, 3), 300, np.uint16))[1].tobytes()),
            "16-bit colours, of which 8 bits would be read",
        ),
        ("photo.png", lambda path: Image.new("L", (5, 5), 9).save(path, "JPEG"), "no PNG, whatever its name"),
        ("float.png", lambda path: Image.fromarray(K.astype(np.float32)).save(path, "TIFF"), "no PNG, whatever its"),
        ("saved.npy", lambda path: path.write_bytes(npy(K) + npy(K.T)), "more follows after its array"),
        ("frames.png", frames, r"animated \(2 frames\)"),
        ("twice.npz", twice, "has more than one variable 'kernels'"),
        ("line.npy", lambda path: np.save(path, np.ones(9)), r"shape \(9,\) holds no kernels"),
        ("huge.npy", huge_header, "too large for kernels"),
        ("truncated.npy", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{"), "cannot be read as .npy"),
    ],
)
def test_what_is_no_kernel_or_could_be_two_things_is_refused_with_what_it_is(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(ArtefactError, match=message) as error, warnings.catch_warnings(action="error"):
        load_kernels(tmp_path / name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.npy", lambda path: np.save(path, np.ones((200, 200))), "larger than the .* bytes"),
        ("a.npz", lambda path: np.savez_compressed(path, np.zeros((200, 200))), "too many for kernels"),
        ("a.png", lambda path: Image.new("L", (90, 90)).save(path), r"shape \(90, 90\) is too large"),
        ("zeros.mat", lambda path: mat(path, np.zeros((200, 200))), r"shape \(200, 200\) is too large"),
        ("cells.mat", lambda path: mat(path, cells([K, np.zeros((40, 40))])), "a variable unpacks to more than .* MiB"),
        ("hdf5.mat", lambda path: hdf5_cells(path, [np.zeros((30, 30), np.int8)] * 2), r"shape \(1800,\) is too large"),
        ("wide.npy", lambda path: np.save(path, np.ones((2, 99))), r"as large as the largest, .*\(1, 99, 99\)"),
    ],
)
def test_no_file_takes_more_memory_than_kernels_need(tmp_path, monkeypatch, name, write, message):
    monkeypatch.setattr(kernel_files, "_MOST_VALUES", 1000)
    monkeypatch.setattr(kernel_files, "MOST_BYTES", 30_000)
    write(tmp_path / name)
    with pytest.raises(ArtefactError, match=message) as error:
        load_kernels(tmp_path / name)
    assert name in str(error.value)


def test_a_compressed_cell_array_of_kernels_is_read(tmp_path):
    mat(tmp_path / "a.mat", cells(list(KERNELS)))
    np.testing.assert_allclose(load_kernels(tmp_path / "a.mat"), KERNELS, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "array", "count"),
    [
        ("one.npy", K, 1),
        ("torch.npy", K[None, None], 1),
        ("batch.npy", np.stack([K] * 4)[:, None], 4),
        ("last.npy", np.stack([K] * 3, -1)[:, :, None], 3),
        ("square.npy", np.outer(np.hanning(27)[1:-1], np.hanning(27)[1:-1]), 1),
        ("cube.mat", np.stack([np.eye(5), *[np.full((5, 5), 0.04)] * 4], -1), 5),
    ],
)
def test_axes_of_length_one_do_not_count_and_matlabs_last_axis_counts_kernels(tmp_path, name, array, count):
    if name.endswith(".mat"):
        scipy_io.savemat(tmp_path / name, {"kernels": array})
    else:
        np.save(tmp_path / name, array)
    loaded = load_kernels(tmp_path / name)
    assert len(loaded) == count
    first = np.squeeze(array)
    first = first if first.ndim == 2 else first[..., 0] if name in {"last.npy", "cube.mat"} else first[0]
    np.testing.assert_allclose(loaded[0], first / first.sum(), atol=1e-6)


def test_pickles_are_not_loaded(tmp_path):
    """An object array would run code when unpickled."""

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    trap = np.empty(1, dtype=object)
    trap[0] = Trap()
    np.save(tmp_path / "k.npy", trap, allow_pickle=True)
    with pytest.raises(ArtefactError):
        load_kernels(tmp_path / "k.npy")
    assert not (tmp_path / "sprung").exists()


def test_hdf5_needs_its_package(tmp_path, monkeypatch):
    WRITERS["hdf5.mat"](tmp_path / "k.mat")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(BadRequestError, match="pip install h5py"):
        load_kernels(tmp_path / "k.mat")


def test_the_published_files(shared):
    twelve = load_kernels(shared / "data" / "kernels_12.mat")
    levin = load_kernels(shared / "data" / "Levin09.mat")
    assert (twelve.shape, levin.shape) == ((12, 25, 25), (8, 27, 27))
    # Side lengths as published; each lies centre on centre in the common field.
    for kernel, side in zip(levin, (19, 17, 15, 27, 13, 21, 23, 23), strict=True):
        margin = (27 - side) // 2
        assert kernel[margin : 27 - margin, margin : 27 - margin].sum() == pytest.approx(1, abs=1e-6)
