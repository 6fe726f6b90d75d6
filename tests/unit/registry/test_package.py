"""What a version says of itself, and that a changed file is noticed by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from kernels_bank.runtime.errors import ArtefactError
from pipeline.model_config import ModelConfig, RestorerConfig
from pipeline.model_folder import ModelManifest, check_folder, write_manifest
from pipeline.registry.package import CONFIG, DIGEST, INPUT, METRIC, PROMOTED, is_origin, requirements

DIGESTS = {"weights.safetensors": "0" * 64}
BLIND = ModelManifest(kind="blind", kernel_size=21, config=ModelConfig(scales=(2, 4)), sha256=DIGESTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    contents = {"weights.safetensors": b"weights", "codec.safetensors": b"codec"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    write_manifest(tmp_path, ModelManifest(kind="blind", config=ModelConfig(), kernel_size=21, sha256=digests))
    return tmp_path


def test_requirements_are_data():
    needs = requirements(BLIND, {"data.sigma": "[0.0, 0.02]"})
    assert (needs["scales"], needs["kernel_size"], needs["blind"]) == ([2, 4], 21, True)
    assert needs["sigma_range"] == [0.0, 0.02]


def test_imported_weights_have_no_known_noise_and_take_any_kernel():
    needs = requirements(ModelManifest(kind="usrnet", config=RestorerConfig(), sha256=DIGESTS), {})
    assert (needs["blind"], needs["kernel_size"], needs["sigma_range"]) == (False, None, None)


def test_the_digest_of_a_folder_is_its_manifests(folder: Path):
    assert check_folder(folder) == hashlib.sha256((folder / "model.json").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["weights.safetensors", "codec.safetensors"])
def test_a_flipped_bit_is_named(folder: Path, name: str):
    content = bytearray((folder / name).read_bytes())
    content[2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ArtefactError, match=rf"{name}: sha256 \w+ is not the \w+ of model.json"):
        check_folder(folder)


def test_a_missing_codec_is_named(folder: Path):
    (folder / "codec.safetensors").unlink()
    with pytest.raises(ArtefactError, match=r"codec\.safetensors: no such file"):
        check_folder(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "sub/file"])
def test_a_manifest_cannot_reach_out_of_its_folder(folder: Path, name: str):
    manifest = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(manifest | {"sha256": {name: "0" * 64}}))
    with pytest.raises(ArtefactError, match=r"model\.json: sha256\."):
        check_folder(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"sha256": 3}', "not json"])
def test_other_files_are_no_manifests(folder: Path, content: str):
    (folder / "model.json").write_text(content)
    with pytest.raises(ArtefactError, match=r"model\.json: (not |schema version None)"):
        check_folder(folder)


def test_origin_is_what_no_other_part_of_a_version_says():
    other = {DIGEST, CONFIG, INPUT, f"{METRIC}psnr.p.x2.blind", f"{PROMOTED}champion.000001", "mlflow.user"}
    assert [tag for tag in [*other, "shards", "bank", "code.revision"] if is_origin(tag)] == [
        "shards",
        "bank",
        "code.revision",
    ]
