"""The served model, and its replacement by a newer version between two requests."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from pipeline.catalogue import REGISTRY, locate
from pipeline.config import Precision
from pipeline.inference import Restorer
from pipeline.model_folder import read_manifest

_RETRY_S = 60.0  # pause after a failed load, as the storage may have been unavailable


@dataclass(frozen=True)
class Served:
    """Hold a loaded model and its name."""

    restorer: Restorer
    name: str  # shipped:NAME, a folder's name, or the version behind an alias, such as models:/blind-sr-x2/3
    version: int | None  # the registered version
    digests: dict[str, str]  # sha256 of its files

    def about(self) -> dict[str, Any]:
        """Describe the model for /healthz."""
        scales, side = list(self.restorer.scales), self.restorer.kernel_side
        return {
            "name": self.name,
            "version": self.version,
            "scales": scales,
            "kernel_side": side,
            "device": self.restorer.device.type,
            "sha256": self.digests,
        }


@dataclass(frozen=True)
class Refused:
    """Hold a version that an alias names but that cannot be served."""

    name: str
    text: str  # for the log
    error: str  # for clients
    at: float  # time.monotonic()


def load(uri: str, precision: Precision = "float32") -> Served:
    """Load the model that a URI names now.

    Args:
        uri: URI of a model.
        precision: number format of its convolutions.

    Raises:
        BadRequestError: there is no such model, it is damaged, or it cannot estimate a kernel.
    """
    location = locate(uri)
    restorer = Restorer.load(location, precision=precision)
    if not restorer.is_blind:
        raise BadRequestError(f"{uri} cannot estimate a kernel; serve a blind model")
    return Served(restorer, location.title, location.version, dict(read_manifest(location.folder).sha256))


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class LiveModel:
    """Hold the served model; `refresh`, called every few seconds, replaces it if its alias has moved.

    A request reads `current` once, so one model restores it even if the model is replaced meanwhile.
    """

    def __init__(self, uri: str, log: Callable[[str], None] = _to_stderr, *, precision: Precision = "float32") -> None:
        self.uri, self._precision, self._log = uri, precision, log
        self.current = load(uri, precision)
        self.refused: Refused | None = None  # the alias's version, if it could not be loaded or looked up

    @property
    def follows(self) -> bool:
        """Return whether the URI can name another model later."""
        return self.uri.startswith(REGISTRY) and "@" in self.uri

    def refresh(self) -> None:
        """Look up the alias, and load its version if it is new. Never raises: on errors the old model stays."""
        wanted = self.uri
        try:
            from pipeline.registry.versions import find

            wanted = find(self.uri).uri
            if wanted == self.current.name:
                self.refused = None
                return
            if self._failed_just_now(wanted):
                return
            self.current, before = load(wanted, self._precision), self.current.name
        except Exception as error:  # with any error in the new model, the old one stays
            self._refuse(wanted, error)
            return
        self.refused = None
        self._log(f"{self.uri} is now version {self.current.version}; {before} is no longer served")

    def _failed_just_now(self, wanted: str) -> bool:
        seen = self.refused
        return seen is not None and seen.name == wanted and time.monotonic() - seen.at < _RETRY_S

    def _refuse(self, wanted: str, error: Exception) -> None:
        """Log an error once; clients only get its kind, since the text may name files and servers."""
        text = " ".join(str(error).split()) or type(error).__name__
        if self.refused is None or (self.refused.name, self.refused.text) != (wanted, text):
            what = "the alias cannot be looked up" if wanted == self.uri else f"{wanted} cannot be loaded"
            self._log(f"{what}, {self.current.name} stays in use: {text}")
        self.refused = Refused(wanted, text, _kind(error), time.monotonic())


def _kind(error: Exception) -> str:
    match error:
        case ArtefactError():
            kind = "its files are missing, damaged or of another program version"
        case BadRequestError():
            kind = "it cannot be found, reached or served"
        case _:
            kind = "it cannot be loaded"
    return f"{kind}; the server's log says more"
