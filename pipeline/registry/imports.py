"""Import of weights as a registered model: published USRNet checkpoints, and model folders of other machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kernels_bank.runtime import scratch, storage, uris
from kernels_bank.runtime.errors import BadRequestError
from pipeline.model_folder import AVERAGED, MANIFEST, RAW, WEIGHTS, read_manifest
from pipeline.registry import versions
from pipeline.registry.package import DIGEST
from pipeline.tracking import runs
from pipeline.tracking.store import client, plain_errors

if TYPE_CHECKING:
    from pipeline.model import BlindUSRNet, USRNet

_EXPERIMENT = "imported-weights"


def import_weights(source: str, name: str, alias: str, uri: str) -> tuple[int, bool]:
    """Register weights that were not trained in this store; registered ones are not duplicated, but get the alias.

    Args:
        source: `.pth` or `.safetensors` of a USRNet, or a model or checkpoint folder of ours; local or s3://.
        name: name of the registered model.
        alias: such as `candidate`.
        uri: tracking URI.

    Returns:
        The version, and whether it is new.

    Raises:
        ArtefactError: the file is missing, damaged, or holds no USRNet; only tensors are unpickled.
        BadRequestError: the store cannot be reached or refuses the request.
    """
    from pipeline.model.weights import load_model, save_model

    raw: BlindUSRNet | USRNet | None = None
    parts: dict[str, str] = {}
    if storage.exists(uris.join(source, MANIFEST)):
        weights = AVERAGED if storage.exists(uris.join(source, AVERAGED)) else WEIGHTS
        network, origin = load_model(source, weights), read_manifest(source).provenance
        digest = storage.sha256_of(uris.join(source, weights))
        beside = WEIGHTS if weights == AVERAGED else RAW
        raw = load_model(source, beside) if storage.exists(uris.join(source, beside)) else None
    elif source.endswith((".pth", ".pt", ".safetensors")):
        network, raw, parts = _read_foreign(source)
        origin, digest = {}, storage.sha256_of(source)
    else:
        raise BadRequestError(
            f"{source}: neither a .pth or .safetensors file of a USRNet, nor a folder with {MANIFEST}"
        )
    facts = {"import.file": Path(source).name, "import.sha256": digest}
    with scratch.temporary("import") as folder:
        save_model(network, folder, provenance=origin | facts, raw=raw)
        if (known := _known(uri, name, storage.sha256_of(folder / MANIFEST))) is not None:
            with plain_errors(uri, f"cannot give '{name}' version {known} the alias '{alias}'"):
                client(uri).set_registered_model_alias(name, alias, str(known))
            return known, False
        run = runs.open_run(_EXPERIMENT, name, uri, params={}, tags=facts | parts | runs.code_revision())
        status: Literal["FINISHED", "FAILED"] = "FAILED"
        try:
            version = versions.register(run, folder, name, alias, metrics={}, tags=facts | parts)
            status = "FINISHED"
        finally:
            runs.finish(run, status)
    return version, True


def _read_foreign(source: str) -> tuple[USRNet, USRNet | None, dict[str, str]]:
    """Read a network from another program's file, and for a moving average the averaged one, with their source."""
    from pipeline.model.foreign import beside
    from pipeline.model.weights import read_usrnet

    network, found = read_usrnet(source)
    raw: USRNet | None = None
    left = [f"{name} of the same file" for name in found.left]
    if (pair := beside(source)) is not None:
        last, averaged = pair
        if source == averaged and storage.exists(last):
            raw, _ = read_usrnet(last)
        elif source == last and storage.exists(averaged):
            left.append(f"the moving average {Path(averaged).name}")
    read = found.read + (f" (the moving average); {Path(pair[0]).name} as the raw weights" if pair and raw else "")
    return network, raw, {"import.read": read, "import.left": ", ".join(left) or "nothing"}


def _known(uri: str, name: str, digest: str) -> int | None:
    """Return the version with the same model folder, if there is one."""
    if name not in versions.list_models(uri):
        return None
    return next((v.number for v in versions.list_versions(name, uri) if v.tags.get(DIGEST) == digest), None)
