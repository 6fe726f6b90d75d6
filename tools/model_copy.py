"""Copy a model folder with one file replaced."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from kernels_bank.runtime import storage
from pipeline.model_config import ModelConfig
from pipeline.model_folder import read_manifest, write_manifest


def write_copy(
    model: Path, output: Path, name: str, data: bytes, made_by: dict[str, str], config: ModelConfig | None = None
) -> None:
    """Copy a model folder with one file and the manifest changed; everything else is unchanged.

    Args:
        model: the folder.
        output: folder of the copy; may be the same.
        name: name of the file, which may exist.
        data: content of the file.
        made_by: origin of the file, added to the manifest's provenance.
        config: new configuration of the model, if it changes.
    """
    if model.absolute() != output.absolute():
        shutil.copytree(model, output, dirs_exist_ok=True)
    manifest = read_manifest(model)
    storage.write_bytes(str(output / name), data)
    changed = {
        "config": config or manifest.config,
        "sha256": manifest.sha256 | {name: hashlib.sha256(data).hexdigest()},
        "provenance": manifest.provenance | made_by,
    }
    write_manifest(output, manifest.model_copy(update=changed))
