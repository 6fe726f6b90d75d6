"""JSON that carries the digest of all its values, so that a bit which changed anywhere in it is seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import ArtefactError

SEAL = "sha256_of_the_rest"


def write_sealed(uri: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object and, in it, the digest of all the other values."""
    storage.write_json(uri, {**content, SEAL: storage.digest_of(content)})


def unsealed(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the object without its digest; one that an earlier version wrote has none.

    Args:
        content: what was read.
        where: its URI, for the error.

    Raises:
        ArtefactError: a value is not what was written.
    """
    rest = {key: value for key, value in content.items() if key != SEAL}
    if SEAL in content and content[SEAL] != storage.digest_of(rest):
        raise ArtefactError(f"{where}: damaged (its values are not those of its digest, {SEAL})")
    return rest
