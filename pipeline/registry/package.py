"""The content of a version: the pyfunc around a model folder, and its model card."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernels_bank.runtime.errors import ArtefactError
from pipeline.model_folder import MANIFEST, RAW, ModelManifest, check_folder, read_manifest

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import ModelSignature

# Tags of a version.
DIGEST = "model.sha256"  # sha256 of the manifest, which covers all files
FILES = "model.id"  # the logged model that holds the files, which MLflow's registry does not record
CONFIG = "model.config"  # the network's configuration, as in the manifest
INPUT = "input"  # accepted inputs
METRIC = "metric."  # prefix: a version's evaluation
PROMOTED = "promoted."  # prefix: time, author and reason of an alias's move to the version
PICTURE = "picture.png"  # picture of the model card, if the model folder has one
MODEL = "artifacts/model"  # place of the model folder in a version
_WRAPPER = Path(__file__).parents[1] / "inference" / "pyfunc_model.py"
# The wrapper's requirements. Without them, MLflow would load the model in a child process to infer them.
_REQUIREMENTS = ["blind-sr", "mlflow>=3.17.2,<4", "numpy>=2.0", "torch>=2.6", "safetensors>=0.5"]


def write(work: Path, stored: LoggedModel, origin: Run, folder: Path, name: str, tags: Mapping[str, str]) -> Path:
    """Make the pyfunc in the empty folder `work`; return the folder to upload.

    Args:
        work: scratch folder.
        stored: the logged model that the files will belong to.
        origin: the run that made the model.
        folder: the model folder.
        name: name of the registered model.
        tags: tags of the version, including `input` and the digest.
    """
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    manifest = read_manifest(folder)
    model = work / "model"  # MLflow stores it under this name
    model.mkdir()
    for file in (MANIFEST, *manifest.sha256):  # and no other files, such as an optimizer's state
        shutil.copy2(folder / file, model / file)
    target = work / "version"
    with warnings.catch_warnings():
        # Suppresses advice about type hints and an input example, which the signature below replaces.
        warnings.simplefilter("ignore", UserWarning)
        save_model(
            target,
            mlflow_model=Model(
                artifact_path=stored.artifact_location,
                model_uuid=stored.model_id,
                model_id=stored.model_id,
                run_id=origin.info.run_id,
                metadata={DIGEST: tags[DIGEST], INPUT: tags[INPUT]},
            ),
            python_model=str(_WRAPPER),
            artifacts={"model": str(model)},
            signature=signature(manifest),
            pip_requirements=_REQUIREMENTS,
        )
    picture = (folder / PICTURE).exists()
    if picture:
        shutil.copy2(folder / PICTURE, target / PICTURE)
    (target / "README.md").write_text(card(name, manifest, tags, origin, picture=picture), encoding="utf-8")
    return target


def check_version(version: Path) -> None:
    """Compare the model folder inside a stored version with the digest in its `MLmodel`. Raises ArtefactError."""
    from mlflow.models import Model

    registered = (Model.load(version).metadata or {}).get(DIGEST)
    if (found := check_folder(version / MODEL)) != registered:
        raise ArtefactError(
            f"{version / MODEL / MANIFEST}: sha256 {found[:12]}, registered was {str(registered)[:12]}; "
            "the stored files were changed"
        )


def signature(manifest: ModelManifest) -> ModelSignature:
    """Describe images (N, H, W, 3) uint8 -> (N, sH, sW, 3) uint8, with `scale`, `sigma` and `kernel` of the wrapper."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))])
    scale = manifest.scales[0]
    params = [
        ParamSpec("scale", "long", scale),
        ParamSpec("sigma", "double", -1.0),
        ParamSpec("kernel", "double", [], (-1,)),
    ]
    return ModelSignature(inputs=images, outputs=images, params=ParamSchema(params))


def requirements(manifest: ModelManifest, params: Mapping[str, str]) -> dict[str, Any]:
    """Describe the accepted inputs as data: scales, sides, kernel size, and the noise it was trained for.

    Args:
        manifest: `model.json` of the model folder.
        params: parameters of the run that trained it (`data.sigma`); empty for imported weights.
    """
    return {
        "images": "uint8 RGB (N, H, W, 3)",
        "scales": list(manifest.scales),
        "multiple_of": 1,
        "kernel_size": manifest.kernel_size,
        "blind": manifest.kind == "blind",
        "sigma_range": json.loads(params.get("data.sigma", "null")),
    }


def summary(manifest: ModelManifest, tags: Mapping[str, str]) -> str:
    """Write one line about the version for the registry's own page."""
    needs = json.loads(tags[INPUT])
    kind = "blind: estimates the blur kernel" if needs["blind"] else "non-blind: needs the blur kernel"
    scales = ", ".join(f"x{scale}" for scale in needs["scales"])
    return f"Super-resolution {scales}; {kind}; {manifest.restorer.unfoldings} unfoldings"


def card(name: str, manifest: ModelManifest, tags: Mapping[str, str], origin: Run, *, picture: bool) -> str:
    """Write the model card in Markdown: description, accepted inputs, evaluation and origin.

    Args:
        name: name of the model.
        manifest: its `model.json`.
        tags: tags of the version.
        origin: the run it came from.
        picture: whether there is a picture next to the card.
    """
    needs = json.loads(tags[INPUT])
    sigma = needs["sigma_range"]
    noise = (
        f"{sigma[0]:g} to {sigma[1]:g} ({sigma[0] * 255:.2f} to {sigma[1] * 255:.2f} of 255)"
        if sigma
        else "not recorded"
    )
    kernel = (
        f"{needs['kernel_size']} x {needs['kernel_size']}" if needs["kernel_size"] else "any odd size, given by you"
    )
    metrics = {k.removeprefix(METRIC): float(v) for k, v in tags.items() if k.startswith(METRIC)}
    provenance = {**manifest.provenance, **{k: v for k, v in tags.items() if is_origin(k)}}
    lines = [f"# {name}", "", summary(manifest, tags), ""]
    if picture:
        lines += [f"![LR, bicubic, restored and original]({PICTURE})", ""]
    lines += [
        "## Use",
        "",
        "```python",
        "import mlflow",
        f'model = mlflow.pyfunc.load_model("models:/{name}@champion")  # or any alias or version',
        f'restored = model.predict(images, params={{"scale": {needs["scales"][0]}}})  # uint8 (N, H, W, 3) RGB',
        "```",
        "",
        "## Accepts",
        "",
        f"- images: {needs['images']}, any height and width",
        f"- scale factors: {', '.join(str(scale) for scale in needs['scales'])}",
        f"- blur kernel: {kernel}; uniform over the image",
        f"- noise level trained for: {noise}",
        "",
        "## Evaluation",
        "",
    ]
    if metrics:
        lines += ["| metric | value |", "|---|---|", *(f"| {key} | {metrics[key]:.4g} |" for key in sorted(metrics))]
    else:
        lines += ["Stored with the version in the registry once it is evaluated (`jobs/registry.py show`)."]
    lines += ["", "## Origin", "", f"- run: {origin.info.run_name} (`{origin.info.run_id}`)"]
    lines += [f"- {key}: `{value}`" for key, value in sorted(provenance.items())]
    lines += ["", "## Files", "", "| file | sha256 |", "|---|---|"]
    lines += [f"| {file} | `{digest}` |" for file, digest in sorted(manifest.sha256.items())]
    lines += [f"| {MANIFEST} | `{tags[DIGEST]}` |", ""]
    if RAW in manifest.sha256:
        lines += [f"What is used are the averages over the training; {RAW} holds the weights of its last step.", ""]
    lines += [
        "## Configuration",
        "",
        "```json",
        json.dumps(manifest.config.model_dump(mode="json"), indent=1, sort_keys=True),
        "```",
        "",
    ]
    return "\n".join(lines)


def is_origin(tag: str) -> bool:
    """Check whether a version's tag describes its origin: digests of its data, code revision."""
    return not tag.startswith((METRIC, PROMOTED, "model.", "mlflow.")) and tag != INPUT
