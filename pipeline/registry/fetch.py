"""Download the files of a registered version to this machine and check them against the registered digests."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from kernels_bank.runtime import scratch, storage
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from pipeline.model_folder import MANIFEST, check_folder
from pipeline.registry.package import DIGEST, MODEL, PICTURE
from pipeline.registry.versions import Version, find, store_uri
from pipeline.tracking.server import without_login
from pipeline.tracking.store import client, plain_errors


def download(uri: str, tracking_uri: str | None = None) -> Path:
    """Download the model folder that a `models:/` URI names.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking_uri: URI of the store; None for that of the environment.

    Raises:
        BadRequestError: there is no such model, alias or version, or the store cannot be reached.
        ArtefactError: the stored files differ from those that were registered.
    """
    where = store_uri(tracking_uri)
    return fetch(find(uri, where), where)


def fetch(version: Version, tracking_uri: str) -> Path:
    """Download the model folder of a version; every file's digest is checked.

    Folders are cached under `$XDG_CACHE_HOME/blind-sr/models/<digest>`.

    Raises:
        BadRequestError: the store cannot be reached.
        ArtefactError: the stored files differ from those that were registered.
    """
    digest = _registered_digest(version)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blind-sr" / "models"
    kept = cache / digest
    if kept.exists():
        try:
            if check_folder(kept) == digest:
                return kept
        except ArtefactError as error:
            print(f"{error}; it is fetched again", file=sys.stderr, flush=True)
        shutil.rmtree(kept)
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with scratch.temporary("incoming", cache) as incoming:
        folder = _fetch(version, tracking_uri, incoming) / MODEL
        storage.sync_files(folder)
        try:
            folder.rename(kept)
        except OSError:
            if not kept.exists():  # otherwise another process has just downloaded it
                raise
    storage.sync_folder(cache)
    return kept


def export(uri: str, output: Path, tracking_uri: str | None = None) -> None:
    """Write the model folder of a version, its model card and its picture to `output`; digests are checked.

    Raises:
        BadRequestError: `output` exists and is not empty, there is no such version, or the store cannot be reached.
        ArtefactError: the stored files differ from those that were registered.
    """
    where = store_uri(tracking_uri)
    version = find(uri, where)
    check_new(output)
    with new_directory(output) as incoming:
        stored = _fetch(version, where, incoming)
        for name in ("README.md", PICTURE):
            if (stored / name).exists():
                (stored / name).rename(stored / MODEL / name)
        (stored / MODEL).rename(output)


def check_new(output: Path) -> None:
    """Check that a directory can be created without overwriting anything. Raises BadRequestError."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadRequestError(f"{output} is there already; nothing is overwritten, choose another --output")


@contextlib.contextmanager
def new_directory(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to the new directory at the end of the block.

    Raises:
        BadRequestError: instead of an OSError in the block.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with scratch.temporary("export", output.parent) as incoming:
            yield incoming
    except OSError as error:
        raise BadRequestError(f"cannot write {output}: {error.strerror}") from error


def _registered_digest(version: Version) -> str:
    if (digest := version.tags.get(DIGEST)) is None:
        raise ArtefactError(f"{version.uri}: not one of this program's models, it has no tag '{DIGEST}'")
    return digest


def _fetch(version: Version, tracking_uri: str, target: Path) -> Path:
    """Download everything stored with a version to `target`, and check the model folder in it."""
    from mlflow.artifacts import download_artifacts

    digest = _registered_digest(version)
    try:
        with plain_errors(tracking_uri, f"cannot fetch {version.uri}"):
            # Not by its models:/ URI, which MLflow would look up in its global store instead of this one.
            source = client(tracking_uri).get_model_version_download_uri(version.name, str(version.number))
            stored = Path(download_artifacts(source, dst_path=str(target), tracking_uri=without_login(tracking_uri)))
    except OSError as error:
        raise BadRequestError(f"cannot fetch {version.uri}: {error}") from error
    if (found := check_folder(stored / MODEL)) != digest:
        raise ArtefactError(
            f"{version.uri}: {MANIFEST} has sha256 {found[:12]}, registered was {digest[:12]}; "
            "the stored files were changed"
        )
    return stored
