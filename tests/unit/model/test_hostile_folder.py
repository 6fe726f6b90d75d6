"""Model folders, codecs and `.pth` files that were made to do harm: one line each, soon, in little memory."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from kernels_bank import KernelCodec, sample_gaussian
from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import ArtefactError
from pipeline.model import BlindUSRNet, USRNet
from pipeline.model.tensors import fill
from pipeline.model.weights import load_model, load_usrnet, save_model
from pipeline.model_config import EstimatorConfig, KernelConfig, ModelConfig, RestorerConfig
from pipeline.model_folder import read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    codec = KernelCodec.fit(sample_gaussian(50, 11, rng=np.random.default_rng(0)), components=4)
    config = ModelConfig(
        restorer=RestorerConfig(unfoldings=2, widths=(4, 4, 4, 4), residual_blocks=1),
        kernel=KernelConfig(rounds=1, estimator=EstimatorConfig(channels=4)),
    )
    save_model(BlindUSRNet(config, codec), tmp_path / "model", {})
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def quick_and_small() -> Iterator[None]:
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((folder / "model.json").read_text())
    change(manifest)
    manifest.pop("digest", None)
    (folder / "model.json").write_text(json.dumps(manifest))


def replace(folder: Path, name: str, data: bytes) -> None:
    """With the right digest."""
    (folder / name).write_bytes(data)
    edit(folder, lambda m: m["sha256"].update({name: hashlib.sha256(data).hexdigest()}))


MANIFESTS: dict[str, Callable[[dict], object]] = {
    "climbs": lambda m: m["sha256"].update({"../../dev/zero": "0" * 64}),
    "absolute": lambda m: m["sha256"].update({"/dev/zero": "0" * 64}),
    "dot": lambda m: m["sha256"].update({".": "0" * 64}),
    "empty name": lambda m: m["sha256"].update({"": "0" * 64}),
    "no digest": lambda m: m["sha256"].update({"weights.safetensors": "x"}),
    "many files": lambda m: m["sha256"].update({f"f{i}": "0" * 64 for i in range(1000)}),
    "digests are a list": lambda m: m.update(sha256=["weights.safetensors"]),
    "wide": lambda m: m["config"]["restorer"].update(widths=[30_000] * 4),
    "wide, within bounds": lambda m: m["config"]["restorer"].update(widths=[1024] * 4, residual_blocks=16),
    "negative": lambda m: m["config"]["restorer"].update(widths=[-1] * 4),
    "blocks": lambda m: m["config"]["restorer"].update(residual_blocks=10**9),
    "huge": lambda m: m["config"]["restorer"].update(hyper_hidden=10**400),
    "scales": lambda m: m["config"].update(scales=[2] * 100_000),
    "kernel": lambda m: m.update(kernel_size=10**9),
    "NaN": lambda m: m.update(kernel_size=float("nan")),
    "kind": lambda m: m.update(kind="pickle"),
    "version": lambda m: m.update(schema_version="9" * 100_000),
    "more": lambda m: m.update(loader="os.system"),
    "weights unlisted": lambda m: m["sha256"].pop("weights.safetensors"),
    "codec unlisted": lambda m: m["sha256"].pop("codec.safetensors"),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_has_bounds(folder: Path, change: Callable[[dict], object]):
    edit(folder, change)
    with pytest.raises(ArtefactError) as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m.update(kernel_size=9), "kernel_size 9, but those of codec.safetensors have 11 pixels a side"),
        (lambda m: m.update(kernel_size=None), "kernel_size None, but those of codec.safetensors have 11"),
        (lambda m: m["config"].update(scales=[2, 3]), "the tensors do not fit the model"),
        (lambda m: m["config"].update(scales=[3]), "the tensors do not fit the model"),
        (lambda m: m["config"]["restorer"].update(unfoldings=3), "the tensors do not fit the model"),
        (lambda m: m["config"]["kernel"].update(reductions=True), "the tensors do not fit the model"),
        (lambda m: m["config"]["kernel"].update(initial="mean"), "the tensors do not fit the model"),
        (lambda m: m["config"]["kernel"].update(prior=True, steps=6), "the tensors do not fit the model"),
    ],
)
def test_a_manifest_of_the_right_digest_that_the_files_contradict_is_refused(
    folder: Path, change: Callable[[dict], object], told: str
):
    edit(folder, change)
    write_manifest(folder, read_manifest(folder))
    with pytest.raises(ArtefactError, match=told):
        load_model(folder)


def test_a_usrnet_alone_has_no_kernel_size(tmp_path: Path):
    save_model(USRNet(RestorerConfig(unfoldings=1, widths=(4, 4, 4, 4), residual_blocks=1)), tmp_path, {})
    load_model(tmp_path)
    edit(tmp_path, lambda m: m.update(kernel_size=11))
    with pytest.raises(ArtefactError, match="kernel_size 11, but a USRNet alone has none"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 100_000, "nul", "[]", "null", "", " " * (2 << 20), "\xff"]
)
def test_json_that_is_no_manifest(folder: Path, text: str):
    (folder / "model.json").write_text(text, encoding="latin-1")
    with pytest.raises(ArtefactError):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors", "codec.safetensors"])
@pytest.mark.parametrize("kind", ["link out", "device", "pipe", "folder", "sparse gigabytes"])
def test_only_regular_files_of_the_folder_are_read(folder: Path, tmp_path: Path, name: str, kind: str):
    file = folder / name
    content = file.read_bytes()
    file.unlink()
    match kind:
        case "link out":
            (tmp_path / "elsewhere").write_bytes(content)
            file.symlink_to(tmp_path / "elsewhere")
        case "device":
            file.symlink_to("/dev/zero")
        case "pipe":
            os.mkfifo(file)
        case "folder":
            file.mkdir()
        case "sparse gigabytes":
            with file.open("wb") as stream:
                stream.truncate(64 << 30)
    with pytest.raises(ArtefactError):
        load_model(folder)


def test_a_folder_may_itself_be_reached_through_a_link(folder: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(folder)
    linked, own = (load_model(path).state_dict() for path in (tmp_path / "link", folder))
    assert all(torch.equal(linked[name], value) for name, value in own.items())


HEADERS = {
    "long": (1 << 62).to_bytes(8, "little") + b"{}",
    "long within the file": (5 << 20).to_bytes(8, "little") + b" " * (5 << 20),
    "nested": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "short": b"\0\0",
    "empty": b"",
    "claims more": (lambda h: len(h).to_bytes(8, "little") + h)(
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    ),
}


@pytest.mark.parametrize("name", ["weights.safetensors", "codec.safetensors"])
@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_hostile_headers(folder: Path, name: str, data: bytes):
    replace(folder, name, data)
    with pytest.raises(ArtefactError):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(folder: Path, value: float):
    tensors = safetensors.torch.load_file(folder / "weights.safetensors")
    next(iter(tensors.values())).view(-1)[0] = value
    replace(folder, "weights.safetensors", safetensors.torch.save(tensors))
    with pytest.raises(ArtefactError, match="is not finite"):
        load_model(folder)


def test_a_weight_that_is_infinite_as_float32(folder: Path):
    tensors = safetensors.torch.load_file(folder / "weights.safetensors")
    name, value = next(iter(tensors.items()))
    replace(folder, "weights.safetensors", safetensors.torch.save(tensors | {name: value.double() + 1e300}))
    with pytest.raises(ArtefactError, match=f"{name} is not finite in float32"):
        load_model(folder)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_floats_are_taken(folder: Path, kind: torch.dtype):
    tensors = {name: t.to(kind) for name, t in safetensors.torch.load_file(folder / "weights.safetensors").items()}
    replace(folder, "weights.safetensors", safetensors.torch.save(tensors))
    loaded = load_model(folder).state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    "kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.int64, torch.bool, torch.complex64]
)
def test_weights_of_types_that_are_none_are_refused_by_name(folder: Path, kind: torch.dtype):
    tensors = safetensors.torch.load_file(folder / "weights.safetensors")
    name = min(tensors)
    replace(folder, "weights.safetensors", safetensors.torch.save(tensors | {name: tensors[name].to(kind)}))
    with pytest.raises(ArtefactError, match=rf"{name} is of type {str(kind)[6:]}, expected float32 or float16 or bfl"):
        load_model(folder)


def test_integers_stay_integers():
    batches = torch.nn.BatchNorm1d(2)  # counts the batches that it saw
    fill(batches, batches.state_dict() | {"num_batches_tracked": torch.tensor(2**40 + 1)}, "here")
    assert batches.num_batches_tracked == 2**40 + 1
    with pytest.raises(ArtefactError, match="num_batches_tracked is of type float32, expected int64"):
        fill(batches, batches.state_dict() | {"num_batches_tracked": torch.tensor(1.5)}, "here")


CODECS = {
    "zero std": {"std": np.zeros(4, np.float32)},
    "NaN": {"mean": np.full(121, np.nan, np.float32)},
    "infinite as float32": {"mean": np.full(121, 1e300)},
    "zero as float32": {"std": np.full(4, 1e-300)},
    "no square": {"mean": np.zeros(120, np.float32)},
    "even": {"mean": np.zeros(100, np.float32)},
    "large": {"mean": np.zeros(101**2, np.float32)},
    "bytes": {"mean": np.zeros(121, np.uint8)},
    "shape": {"basis": np.zeros((4, 121), np.float32)},
    "scalar": {"mean": np.zeros((), np.float32)},
}


@pytest.mark.parametrize("arrays", CODECS.values(), ids=CODECS)
def test_codecs_that_are_none(folder: Path, arrays: dict[str, np.ndarray]):
    from safetensors.numpy import load_file, save

    good = load_file(folder / "codec.safetensors") | arrays
    codec = KernelCodec(**{name: good[name] for name in ("mean", "basis", "std", "spectrum")})
    about = json.dumps({"schema": "1", "bank_digest": "", "digest": codec.digest})
    replace(folder, "codec.safetensors", save(good, metadata={"kernel-codec": about}))
    with pytest.raises(ArtefactError, match="not a kernel codec"):
        load_model(folder)


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def compressed(data: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))
    return packed.getvalue()


PICKLES: dict[str, Callable[[], bytes]] = {
    "zip bomb": lambda: compressed(saved({"a": torch.zeros(50 << 20)})),
    "one value, expanded": lambda: saved({"p.m_head.weight": torch.zeros(1).expand(1 << 40)}),
    "sparse": lambda: saved({"a": torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.int64), [1.0], (1 << 40,))}),
    "meta": lambda: saved({"a": torch.zeros(1 << 40, device="meta")}),
    "NaN": lambda: saved({"a": torch.full((3,), float("nan"))}),
    "nested": lambda: saved({"params": {"params": {}}}),
    "few dimensions": lambda: saved({"h.mlp.4.weight": torch.zeros(4)}),
}


@pytest.mark.parametrize("make", PICKLES.values(), ids=PICKLES)
def test_hostile_pickles(tmp_path: Path, make: Callable[[], bytes]):
    (tmp_path / "a.pth").write_bytes(make())
    with pytest.raises(ArtefactError) as raised:
        load_usrnet(tmp_path / "a.pth")
    assert "\n" not in str(raised.value)


def test_json_has_limits_for_everyone(tmp_path: Path):
    with (tmp_path / "large.json").open("wb") as stream:
        stream.truncate(64 << 30)
    with pytest.raises(ArtefactError, match="at most"):
        storage.read_json(tmp_path / "large.json")
    for text in ("NaN", "[Infinity]", "[" * 100_000):
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(ArtefactError, match="not a JSON file"):
            storage.read_json(tmp_path / "odd.json")
