"""Weights from elsewhere as a registered model: published USRNet checkpoints, and model folders of other machines."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import BadRequestError
from pipeline.tracking import registry, runs
from pipeline.tracking.package import DIGEST, MANIFEST

_EXPERIMENT = "imported-weights"
_AVERAGED = "ema.safetensors"  # of a checkpoint of ours: the weights that a finished run registers


def import_weights(source: str, name: str, alias: str, uri: str) -> tuple[int, bool]:
    """Register weights that were not trained in this store; the same weights a second time are found, not doubled.

    Args:
        source: `.pth` or `.safetensors` of a USRNet, or a model or checkpoint folder of ours; local or s3://.
        name: of the registered model.
        alias: such as `candidate`.
        uri: tracking URI.

    Returns:
        The version, and whether it is new.

    Raises:
        ArtefactError: the file is missing, damaged, or holds no USRNet; nothing is unpickled but tensors.
        BadRequestError: the store cannot be reached or refuses.
    """
    from pipeline.model.weights import RAW, WEIGHTS, load_model, load_usrnet, save_model

    raw = None

    if storage.exists(manifest := storage.join(source, MANIFEST)):
        weights = _AVERAGED if storage.exists(storage.join(source, _AVERAGED)) else WEIGHTS
        network, origin = load_model(source, weights), storage.read_json(manifest).get("provenance", {})
        digest = storage.sha256_of(storage.join(source, weights))
        beside = WEIGHTS if weights == _AVERAGED else RAW
        raw = load_model(source, beside) if storage.exists(storage.join(source, beside)) else None
    elif source.endswith((".pth", ".pt", ".safetensors")):
        network, origin, digest = load_usrnet(source), {}, storage.sha256_of(source)
    else:
        raise BadRequestError(
            f"{source}: neither a .pth or .safetensors file of a USRNet, nor a folder with {MANIFEST}"
        )
    facts = {"import.file": Path(source).name, "import.sha256": digest}
    with tempfile.TemporaryDirectory(prefix="blindsr-import-") as temporary:
        folder = Path(temporary)
        save_model(network, folder, provenance=origin | facts, raw=raw)
        if (known := _known(uri, name, storage.sha256_of(folder / MANIFEST))) is not None:
            return known, False
        run = runs.open_run(_EXPERIMENT, name, uri, params={}, tags=facts | runs.code_revision())
        status: Literal["FINISHED", "FAILED"] = "FAILED"
        try:
            version = registry.register(run, folder, name, alias, metrics={}, tags=facts)
            status = "FINISHED"
        finally:
            runs.finish(run, status)
    return version, True


def _known(uri: str, name: str, digest: str) -> int | None:
    """The version that holds the same model folder."""
    if name not in registry.list_models(uri):
        return None
    return next((v.number for v in registry.list_versions(name, uri) if v.tags.get(DIGEST) == digest), None)
