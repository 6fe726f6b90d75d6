"""JSON with a digest of all its values, which reveals any changed bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import ArtefactError

SEAL = "sha256_of_the_rest"


def write_sealed(uri: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, including a digest of all its other values."""
    storage.write_json(uri, {**content, SEAL: storage.digest_of(content)})


def unsealed(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the object without its digest; an object of an earlier version has no digest.

    Args:
        content: parsed object.
        where: URI of the object, for the error.

    Raises:
        ArtefactError: a value has changed since it was written.
    """
    rest = {key: value for key, value in content.items() if key != SEAL}
    if SEAL in content and content[SEAL] != storage.digest_of(rest):
        raise ArtefactError(f"{where}: damaged (its values are not those of its digest, {SEAL})")
    return rest
