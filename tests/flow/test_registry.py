"""The registry on real stores: what is looked up is what was registered, checked, and never unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from pipeline.inference import Restorer
from pipeline.registry import fetch, versions
from pipeline.tracking import runs
from pipeline.tracking.store import client

pytestmark = pytest.mark.flow
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 20, 17, 3), np.uint8)


def contents(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def stored_files(tmp_path: Path) -> Path:
    """The model folder inside the only version of a SQLite store in `tmp_path`."""
    (manifest,) = tmp_path.glob("mlartifacts/**/model.json")
    return manifest.parent


def test_lookup_gives_back_what_was_registered(
    store: str, model_name: str, model_folder: Callable[[int], Path], add_version: Callable[..., int]
):
    one, two = add_version(store, 1), add_version(store, 2)
    client(store).set_registered_model_alias(model_name, "champion", str(one))
    assert contents(fetch.download(f"models:/{model_name}@champion", store)) == contents(model_folder(1))
    assert contents(fetch.download(f"models:/{model_name}/{two}", store)) == contents(model_folder(2))
    assert versions.find(f"models:/{model_name}@candidate", store).uri == f"models:/{model_name}/{two}"
    assert [v.number for v in versions.list_versions(model_name, store)] == [two, one]

    versions.add_metrics(store, model_name, one, {"psnr.float.x2.blind": 30.123456789012345})
    found = versions.find(f"{model_name}@champion", store)
    assert found.metrics == {"psnr.float.x2.blind": 30.123456789012345}
    assert found.aliases == ("champion",)
    assert found.tags["shards"] == "s" * 64
    assert json.loads(found.tags["input"])["sigma_range"] == [0.0, 0.02]
    assert json.loads(found.tags["model.config"])["restorer"]["widths"] == [4, 4, 4, 4]
    assert client(store).get_run(found.run_id).info.status == "FINISHED"


def test_the_server_keeps_rows_in_postgresql_and_files_on_s3(
    postgres: str | None, tracking_server: str, model_name: str, add_version: Callable[..., int]
):
    if postgres is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql, pip install psycopg2-binary")
    import boto3
    import psycopg2

    add_version(tracking_server)
    with psycopg2.connect(postgres.replace("+psycopg2", "")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT value FROM model_version_tags WHERE name = %s AND key = 'model.id'", (model_name,))
        ((model,),) = cursor.fetchall()
    found = boto3.client("s3").list_objects_v2(Bucket="test", Prefix="mlflow/")["Contents"]
    weights = [item["Key"] for item in found if model in item["Key"] and item["Key"].endswith("/weights.safetensors")]
    assert len(weights) == 1


def test_registering_again_after_a_kill_makes_no_second_version(
    store: str, model_name: str, model_folder: Callable[[int], Path]
):
    run_ = runs.open_run("registry", "a", store, {}, {}, key=model_name)
    first = versions.register(run_, model_folder(1), model_name, "candidate", {}, {})
    client(store).delete_registered_model_alias(model_name, "candidate")  # as if killed before the alias
    assert versions.register(run_, model_folder(1), model_name, "candidate", {}, {}) == first
    assert versions.aliases_of(model_name, store) == {"candidate": first}
    assert versions.register(run_, model_folder(2), model_name, "candidate", {}, {}) != first
    assert len(versions.list_versions(model_name, store)) == 2


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/{0}@champion", r"has no alias 'champion'; it has: candidate \(version 1\)"),
        ("models:/{0}/7", "has no version 7; it has: 1"),
        ("models:/nobody/1", "no model 'nobody' in the registry; it has: .*{0}"),
        ("models:/{0}", "write models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/a/b/c", "write models:/"),
    ],
)
def test_a_wrong_reference_is_told_what_there_is(
    sqlite_store: str, model_name: str, add_version: Callable[..., int], uri: str, message: str
):
    add_version(sqlite_store)
    with pytest.raises(BadRequestError, match=message.format(model_name)):
        fetch.download(uri.format(model_name), sqlite_store)


@pytest.mark.parametrize("name", ["O'Brien", "a'b\"c", "100%", "a\\b", "modèle 2.1"])
def test_a_name_with_odd_characters_is_found_again(
    sqlite_store: str, name: str, model_folder: Callable[[int], Path], tmp_path: Path
):
    home = str(tmp_path / name / "runs")
    run = runs.open_run(f"experiment {name}", name, sqlite_store, {}, {}, key=home)
    assert runs.open_run(f"experiment {name}", name, sqlite_store, {}, {}, key=home) == run  # as after a kill
    for other in ("another", f"{name}2"):
        client(sqlite_store).create_registered_model(other)
    assert versions.register(run, model_folder(0), name, "candidate", {}, {}) == 1
    assert versions.register(run, model_folder(0), name, "candidate", {}, {}) == 1
    (version,) = versions.list_versions(name, sqlite_store)
    assert version == versions.find(f"{name}@candidate", sqlite_store) == versions.find(f"{name}/1", sqlite_store)


def test_what_the_registry_refuses_leaves_no_empty_model(
    sqlite_store: str, model_folder: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException.invalid_parameter_value("a rule that we do not know of")

    run = runs.open_run("registry", "a", sqlite_store, {}, {})
    for name, alias in (("a/b", "candidate"), ("ab", "v1"), ("ab", "latest"), ("", "candidate")):
        with pytest.raises(BadRequestError, match="alias" if name == "ab" else "model name"):
            versions.register(run, model_folder(0), name, alias, {}, {})
    monkeypatch.setattr(MlflowClient, "create_model_version", refuse)
    with pytest.raises(BadRequestError, match="a rule that we do not know of"):
        versions.register(run, model_folder(0), "ab", "candidate", {}, {})
    assert client(sqlite_store).search_registered_models() == []


# Python reports every name that a pickle asks for, by whatever library it is read.
PREDICT = """
import sys
import numpy as np
import mlflow

unpickled = []
sys.addaudithook(lambda event, arguments: event == "pickle.find_class" and unpickled.append(arguments))
model = mlflow.pyfunc.load_model(sys.argv[1])
images = np.load("images.npy")
np.save("restored.npy", model.predict(images, params={"scale": 2}))
np.save("known.npy", model.predict(images, params={"scale": 2, "sigma": 0.01, "kernel": [0.0] * 4 + [1.0] + [0.0] * 4}))
print(*unpickled, *{"ray", "cv2", "torch._dynamo", "sympy"} & set(sys.modules))
"""


def test_mlflow_alone_restores_in_a_fresh_process(
    store: str, model_name: str, model_folder: Callable[[int], Path], add_version: Callable[..., int], tmp_path: Path
):
    add_version(store, 1)
    work = tmp_path / "elsewhere"
    work.mkdir()
    np.save(work / "images.npy", IMAGES)
    # Without the keys of S3: the server hands the files out.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MLFLOW_"))}
    environment |= {"MLFLOW_TRACKING_URI": store, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-c", PREDICT, f"models:/{model_name}@candidate"]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []  # nothing was unpickled; neither Ray nor OpenCV nor torch's compiler is needed

    restorer = Restorer.load(model_folder(1), torch.device("cpu"))
    expected = np.stack([restorer.restore(image, 2).image for image in IMAGES])
    assert np.array_equal(np.load(work / "restored.npy"), expected)
    delta = np.eye(9, dtype=np.float32)[4].reshape(3, 3)
    expected = np.stack([restorer.restore(image, 2, 0.01, delta).image for image in IMAGES])
    assert np.array_equal(np.load(work / "known.npy"), expected)


def test_nothing_stored_is_a_pickle_or_a_stray_file(
    sqlite_store: str, model_folder: Callable[[int], Path], add_version: Callable[..., int], tmp_path: Path
):
    folder = shutil.copytree(model_folder(1), tmp_path / "checkpoint")
    torch.save({"step": 1}, folder / "optimizer.pt")
    Image.fromarray(IMAGES[0]).save(folder / "picture.png")
    add_version(sqlite_store, folder=folder)
    version = stored_files(tmp_path).parents[1]
    assert contents(stored_files(tmp_path)).keys() == contents(model_folder(1)).keys()
    files = [file for file in version.rglob("*") if file.is_file()]
    assert "picture.png" in {file.name for file in files}
    assert {file.suffix for file in files} == {"", ".yaml", ".py", ".txt", ".md", ".json", ".safetensors", ".png"}
    for file in files:
        head = file.read_bytes()[:2]
        assert head[:1] != b"\x80", file  # a pickle of protocol 2 or newer
        assert head != b"PK", file  # a zip, such as torch.save makes


def flip_a_weight(folder: Path) -> None:
    file = folder / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def flip_a_weight_and_correct_the_manifest(folder: Path) -> None:
    flip_a_weight(folder)
    manifest = json.loads((folder / "model.json").read_text())
    manifest["sha256"]["weights.safetensors"] = hashlib.sha256(
        (folder / "weights.safetensors").read_bytes()
    ).hexdigest()
    del manifest["digest"]  # as in folders of earlier versions
    (folder / "model.json").write_text(json.dumps(manifest))


def lose_the_codec(folder: Path) -> None:
    (folder / "codec.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip_a_weight, r"weights\.safetensors: sha256 \w+ is not the \w+ of model\.json"),
        (flip_a_weight_and_correct_the_manifest, r"model\.json.* sha256 \w+, registered was \w+; .* were changed"),
        (lose_the_codec, r"codec\.safetensors: no such file"),
    ],
)
def test_changed_files_are_refused_by_every_way_in(
    sqlite_store: str, model_name: str, add_version: Callable[..., int], tmp_path: Path, change, message: str
):
    import mlflow

    add_version(sqlite_store)
    change(stored_files(tmp_path))
    with pytest.raises(ArtefactError, match=message):
        fetch.download(f"models:/{model_name}@candidate", sqlite_store)
    with pytest.raises(ArtefactError, match=message):
        fetch.export(f"models:/{model_name}@candidate", tmp_path / "out", sqlite_store)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArtefactError, match=message):
        mlflow.pyfunc.load_model(str(stored_files(tmp_path).parents[1]))


def test_a_newer_format_asks_for_a_newer_program(
    sqlite_store: str,
    model_name: str,
    model_folder: Callable[[int], Path],
    add_version: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    add_version(sqlite_store)
    newer = stored_files(tmp_path) / "model.json"
    newer.write_text(json.dumps(json.loads(newer.read_text()) | {"schema_version": 5}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_store)
    with pytest.raises(ArtefactError, match="schema version 5, this program reads 1 to 4; update it"):
        Restorer.load(f"models:/{model_name}@candidate")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_registered(
    sqlite_store: str,
    model_name: str,
    model_folder: Callable[[int], Path],
    add_version: Callable[..., int],
    tmp_path: Path,
    value: float,
):
    folder = shutil.copytree(model_folder(1), tmp_path / "infinite")
    tensors = load_file(folder / "weights.safetensors")
    next(iter(tensors.values())).view(-1)[0] = value
    save_file(tensors, folder / "weights.safetensors")
    manifest = json.loads((folder / "model.json").read_text())
    manifest["sha256"]["weights.safetensors"] = hashlib.sha256(
        (folder / "weights.safetensors").read_bytes()
    ).hexdigest()
    del manifest["digest"]
    (folder / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="is not finite"):
        add_version(sqlite_store, folder=folder)
    assert versions.list_models(sqlite_store) == []


def test_fetched_models_are_kept_and_a_damaged_one_is_fetched_again(
    sqlite_store: str, model_name: str, model_folder: Callable[[int], Path], add_version: Callable[..., int], tmp_path
):
    add_version(sqlite_store, 1)
    uri = f"models:/{model_name}@candidate"
    kept = fetch.download(uri, sqlite_store)
    flip_a_weight(kept)
    assert contents(fetch.download(uri, sqlite_store)) == contents(model_folder(1))
    shutil.rmtree(tmp_path / "mlartifacts")
    assert fetch.download(uri, sqlite_store) == kept
    flip_a_weight(kept)
    with pytest.raises(BadRequestError, match=rf"cannot fetch models:/{model_name}/1"):
        fetch.download(uri, sqlite_store)
