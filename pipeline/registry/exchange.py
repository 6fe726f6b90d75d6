"""Export of a registered model as a file for other runtimes, with a note of its origin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import BadRequestError
from pipeline.model_folder import MANIFEST
from pipeline.registry.fetch import check_new, fetch, new_directory
from pipeline.registry.versions import find, store_uri

ORIGIN = "origin.json"


def export_as(
    uri: str,
    output: Path,
    form: Literal["torch-export", "onnx"],
    scale: int | None,
    tracking_uri: str | None = None,
    *,
    part: Literal["restorer", "initial-kernel"] = "restorer",
) -> dict[str, Any]:
    """Write a part of a version in an exchange format to the new directory `output`.

    Args:
        uri: NAME@ALIAS or NAME/VERSION, with or without `models:/`.
        output: directory to make.
        form: format of the files.
        scale: scale to export; None for the model's only one.
        tracking_uri: URI of the store; None for that of the environment.
        part: the restorer with a known kernel, or the net of the initial kernel.

    Returns:
        The content of `origin.json`: version, digest, file, scale, and greatest difference from the network.

    Raises:
        BadRequestError: `output` is not empty, there is no such version or scale, or a package is missing.
        ArtefactError: the stored files differ from those that were registered.
        JobFailedError: the exporter cannot express the network, or a file's results differ; nothing is written.
    """
    from pipeline.model.export import export_part
    from pipeline.model.weights import load_model

    check_new(output)
    store = store_uri(tracking_uri)
    version = find(uri, store)
    folder = fetch(version, store)
    network = load_model(folder)
    scales = network.scales
    if scale is None:
        if len(scales) > 1:
            raise BadRequestError(f"{version.uri} restores {', '.join(map(str, scales))}: choose one with --scale")
        scale = scales[0]
    with new_directory(output) as incoming:
        made = incoming / "files"
        made.mkdir()
        name, difference = export_part(network, made, form, scale, part)
        origin = {
            "model": version.uri,
            "model_json_sha256": storage.sha256_of(folder / MANIFEST),
            "file": name,
            "scale": scale,
            "difference": difference,
        }
        (made / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n")
        made.rename(output)
    return origin
