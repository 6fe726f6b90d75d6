"""The model folder: the names of its files, its manifest, and the check of each file against the manifest.

model.json               the manifest, written last: configuration, and the sha256 of every other file
weights.safetensors      the weights in use; matrices may be in 8 bit (`pipeline/model/int8.py`)
codec.safetensors        in a blind model: the kernel code
weights-raw.safetensors  in a finished run: the last step's weights, which `weights` averages
ema.safetensors          in a checkpoint: the averages of `weights`, used instead of them

Nothing here imports torch. Networks are written and read in `pipeline/model/weights.py`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from kernels_bank.runtime import storage, uris
from kernels_bank.runtime.errors import ArtefactError
from pipeline.frozen import Frozen
from pipeline.model_config import EVERY_SCALE, ModelConfig, RestorerConfig, nested

# Older versions that can be read. 1: flat network settings; 2: estimators without normalisation; 3: no kernel prior.
SCHEMA_VERSION: Literal[4] = 4
MANIFEST, WEIGHTS, CODEC = "model.json", "weights.safetensors", "codec.safetensors"
RAW, AVERAGED = "weights-raw.safetensors", "ema.safetensors"
_NORMALISED = 3  # the first schema version whose estimators see normalised images
_MANIFEST_BYTES = 1 << 20

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _kind(config: object) -> str:
    """Return the kind of network that a configuration describes; a plain USRNet has only a restorer's configuration."""
    is_restorers = isinstance(config, RestorerConfig) or (isinstance(config, dict) and "unfoldings" in config)
    return "usrnet" if is_restorers else "blind"


class ModelManifest(Frozen):
    """Describe a model folder."""

    schema_version: Literal[4] = SCHEMA_VERSION
    kind: Literal["blind", "usrnet"]
    config: Annotated[
        Annotated[ModelConfig, Tag("blind")] | Annotated[RestorerConfig, Tag("usrnet")], Discriminator(_kind)
    ]
    kernel_size: int | None = Field(None, ge=1, le=99)
    sha256: dict[FileName, Sha256] = Field(min_length=1, max_length=16)
    provenance: dict[str, str] = Field(default_factory=dict, max_length=100)
    digest: Sha256 | None = None  # of all fields above, as written; folders of earlier versions have none

    @model_validator(mode="after")
    def _kinds_agree(self) -> ModelManifest:
        if _kind(self.config) != self.kind:
            raise ValueError(f"the configuration is not that of a network of kind '{self.kind}'")
        return self

    @property
    def restorer(self) -> RestorerConfig:
        """Return the configuration of the model's restorer."""
        return self.config if isinstance(self.config, RestorerConfig) else self.config.restorer

    @property
    def scales(self) -> tuple[int, ...]:
        """Return the scale factors that the model supports."""
        return EVERY_SCALE if isinstance(self.config, RestorerConfig) else self.config.scales

    @property
    def used(self) -> str:
        """Return the name of the weights file in use: the averages if the folder has them."""
        return AVERAGED if AVERAGED in self.sha256 else WEIGHTS


def read_manifest(directory: str | Path) -> ModelManifest:
    """Read and validate `model.json`.

    Raises:
        ArtefactError: the file is missing, too large, of another schema version, or has a value out of bounds.
    """
    where = uris.join(directory, MANIFEST)
    check_inside(directory, MANIFEST)
    content = storage.read_json(where, limit=_MANIFEST_BYTES)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version not in (1, 2, 3, SCHEMA_VERSION):
        raise ArtefactError(
            f"{where}: schema version {version!r:.40}, this program reads 1 to {SCHEMA_VERSION}; update it"
        )
    try:
        manifest = ModelManifest.model_validate(
            _upgraded(content) if version == 1 else content | {"schema_version": SCHEMA_VERSION}
        )
    except ValidationError as error:
        raise ArtefactError(f"{where}: {first_problem(error)}; it is damaged or not a model of ours") from error
    if manifest.digest not in (None, _digest(content)):
        raise ArtefactError(f"{where}: its content is not that of its digest; the file was changed or damaged")
    if version < _NORMALISED and isinstance(manifest.config, ModelConfig):
        return manifest.model_copy(update={"config": _before_normalising(manifest.config)})
    return manifest


def write_manifest(directory: str | Path, manifest: ModelManifest) -> None:
    """Write `model.json` with its own digest. All other files must exist already."""
    content = manifest.model_dump(mode="json")
    storage.write_json(uris.join(directory, MANIFEST), content | {"digest": _digest(content)})


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """Convert the content of a manifest of schema version 1 to the present schema."""
    config = content.get("config")
    if isinstance(config, dict):
        config = nested(config)[0]
        if content.get("kind") == "usrnet":
            config = config.get("restorer", {})
    return content | {"schema_version": SCHEMA_VERSION, "config": config}


def _before_normalising(config: ModelConfig) -> ModelConfig:
    """Return the configuration of a model whose estimator, if it has one, sees images without normalisation."""
    if not config.kernel.rounds:
        return config
    estimator = config.kernel.estimator.model_copy(update={"normalised": False})
    return config.model_copy(update={"kernel": config.kernel.model_copy(update={"estimator": estimator})})


def _digest(content: dict[str, Any]) -> str:
    return storage.digest_of({key: value for key, value in content.items() if key != "digest"})


def first_problem(error: ValidationError) -> str:
    """Return the first validation error: `config.widths.0: Input should be ...`."""
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(str(part)[:100] for part in first['loc'] if part not in ('blind', 'usrnet'))}: {first['msg']}"


def read_file(
    directory: str | Path, name: str, sha256: str, *, limit: int | None = None, listed_in: str = MANIFEST
) -> bytes:
    """Read a file of the folder and compare it with its digest.

    Args:
        directory: local or s3://.
        name: name of the file.
        sha256: expected digest.
        limit: largest allowed size in bytes.
        listed_in: source of the digest, for the error message.

    Raises:
        ArtefactError: the file is missing, too large, not a regular file inside the folder, or has another digest.
    """
    check_inside(directory, name)
    data = storage.read_bytes(uris.join(directory, name), limit=limit)
    _compare(directory, name, hashlib.sha256(data).hexdigest(), sha256, listed_in)
    return data


def check_file(directory: str | Path, name: str, sha256: str) -> None:
    """Compare a file of the folder with its digest, using little memory. Raises ArtefactError as `read_file` does."""
    check_inside(directory, name)
    _compare(directory, name, storage.sha256_of(uris.join(directory, name)), sha256)


def check_folder(directory: str | Path) -> str:
    """Compare every file of a model folder with the digests in its manifest; return the sha256 of the manifest itself.

    Raises:
        ArtefactError: a file is missing or changed, or the manifest is invalid.
    """
    for name, digest in read_manifest(directory).sha256.items():
        check_file(directory, name, digest)
    return storage.sha256_of(uris.join(directory, MANIFEST))


def check_inside(directory: str | Path, name: str) -> None:
    """Refuse a name that leads out of a local folder, through a link for instance. Raises ArtefactError."""
    if uris.is_s3(directory):
        return
    folder = Path(uris.path_of(directory)).resolve()
    if not (folder / name).resolve().is_relative_to(folder):
        raise ArtefactError(f"{uris.join(directory, name)}: leads out of its folder; copy the file itself there")


def _compare(directory: str | Path, name: str, found: str, expected: str, listed_in: str = MANIFEST) -> None:
    if found != expected:
        raise ArtefactError(
            f"{uris.join(directory, name)}: sha256 {found[:12]} is not the {expected[:12]} of {listed_in}; "
            "the file was changed or damaged, copy the folder again"
        )
