"""Find a model wherever it is kept: shipped with the program, in the registry, in a folder, in a published file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels_bank.runtime import storage, uris
from kernels_bank.runtime.errors import ArtefactError
from pipeline.model_folder import MANIFEST, read_manifest
from pipeline.shipped import SCHEME, shipped_folder

if TYPE_CHECKING:
    from pipeline.model import BlindUSRNet, USRNet

REGISTRY = "models:/"
_PUBLISHED = (".pth", ".pt")


@dataclass(frozen=True)
class ModelLocation:
    """Hold where the files of one model are. An alias has been resolved to the version that it named at that moment."""

    name: str  # shipped:NAME, models:/NAME/VERSION, or the given folder or file
    folder: str  # local or s3://; for a published checkpoint, the file itself
    version: int | None = None  # the registered version

    @property
    def title(self) -> str:
        """Return a display name, which does not reveal the path of a folder."""
        if self.name.startswith((SCHEME, REGISTRY)):
            return self.name
        return self.name.rstrip("/").rpartition("/")[2]


def locate(uri: str) -> ModelLocation:
    """Find the model that a URI names. The files of a registered model are downloaded to this machine and checked.

    Args:
        uri: `shipped:NAME`, `models:/NAME@ALIAS`, `models:/NAME/VERSION`, a model or checkpoint folder (local or
            s3://), or the `.pth` of a published USRNet.

    Raises:
        BadRequestError: no such model, alias or version, or the registry cannot be reached.
        ArtefactError: a folder that holds no model, or stored files that are not those that were registered.
    """
    if uri.endswith(_PUBLISHED):
        return ModelLocation(uri, uri)
    if uri.startswith(SCHEME):
        return ModelLocation(uri, str(shipped_folder(uri)))
    if uri.startswith(REGISTRY):
        # Imported late: MLflow takes a second to import, and a folder does not need it.
        from pipeline.registry import versions
        from pipeline.registry.fetch import fetch

        store = versions.store_uri()
        version = versions.find(uri, store)
        return ModelLocation(version.uri, str(fetch(version, store)), version.number)
    if not storage.exists(uris.join(uri, MANIFEST)):
        raise ArtefactError(
            f"{uri}: holds no {MANIFEST}; give shipped:NAME, models:/NAME@ALIAS, models:/NAME/VERSION, "
            "a model or checkpoint directory, or the .pth of a published USRNet"
        )
    return ModelLocation(uri, uri)


def open_network(location: ModelLocation) -> tuple[BlindUSRNet | USRNet, str]:
    """Return the network of a model, on the CPU, and the sha256 of the weights that it uses.

    Raises:
        ArtefactError: the model's files are missing, damaged or of another program version.
    """
    from pipeline.model.weights import load_model, load_usrnet

    folder = location.folder
    if folder.endswith(_PUBLISHED):
        return load_usrnet(folder), storage.sha256_of(folder)
    manifest = read_manifest(folder)
    return load_model(folder), manifest.sha256[manifest.used]
