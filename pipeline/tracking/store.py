"""The choice of the MLflow store, its client, and one-line errors."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kernels_bank.runtime import storage, uris
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.redact import mask_text, mask_uri
from pipeline.tracking import server
from pipeline.tracking.imported import import_mlflow
from pipeline.tracking.server import without_login
from pipeline.tracking.sqlite import SQLITE, prepare_store, refused_by_disk, sqlite_code, sqlite_error

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Answers that a retry does not change.
_FINAL = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST"})


@dataclass(frozen=True)
class RunRef:
    """Name a tracking run, in an object that is small enough to send to workers."""

    run_id: str
    tracking_uri: str = field(repr=False)  # may hold a password: print `shown`

    @property
    def shown(self) -> str:
        """Return the tracking URI without secrets, for printing."""
        return mask_uri(self.tracking_uri)


def tracking_uri(output: str | Path) -> str:
    """Return the store for runs: `MLFLOW_TRACKING_URI` if set, else the file `mlflow.db` under a local `output`.

    Raises:
        BadRequestError: the variable does not name a server or an SQLite file, or it is unset and `output` is not
            local (SQLite does not work on an object store).
    """
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return checked_uri(given)
    if uris.is_s3(output):
        raise BadRequestError(
            f"output {output} is not on this machine and there is no tracking server: set MLFLOW_TRACKING_URI, "
            "for example to http://127.0.0.1:5000, or to sqlite:////absolute/path/mlflow.db"
        )
    return checked_uri(f"{SQLITE}{storage.resolve(output)[1]}/mlflow.db")


def use_store(output: str | Path) -> str:
    """Use the store of a run under `output` for this process's look-ups of models; return its URI."""
    uri = tracking_uri(output)
    os.environ["MLFLOW_TRACKING_URI"] = uri
    return uri


def checked_uri(uri: str) -> str:
    """Return `uri` in a form that does not depend on the working directory.

    Raises:
        BadRequestError: the URI is neither `http(s)://` nor `sqlite:///`, has no host name, or has a login that is not
            percent-encoded, so that its end is ambiguous. Other databases need `mlflow server`, which knows the place
            of artifacts; MLflow has closed its store of plain folders.
    """
    if uri.startswith(("http://", "https://")):
        return server.checked(uri)
    if uri.startswith(SQLITE) and uri != SQLITE:
        path = str(uris.at_home(uri.removeprefix(SQLITE)).absolute())
        if wrong := set("?#%") & set(path):
            raise BadRequestError(f"{path}: an SQLite store cannot lie under a path with '{wrong.pop()}'; move it")
        return SQLITE + path
    raise BadRequestError(
        f"tracking URI {mask_uri(uri)}: use http(s)://host:port of an mlflow server, or sqlite:///path/mlflow.db"
    )


def client(uri: str) -> MlflowClient:
    """Return a client of tracking and registry at `uri`. The only global state that it sets is a login in the URI.

    Raises:
        BadRequestError: an SQLite store cannot be created or is locked, or a server accepts connections but is silent.
        OSError: as in `plain_errors`.
    """
    import_mlflow()
    if uri.startswith("http"):
        server.expect_answer(uri)
    prepare_store(uri)
    from mlflow import MlflowClient

    address = without_login(uri)
    with plain_errors(uri, "cannot open the store"):
        return MlflowClient(tracking_uri=address, registry_uri=address)


@contextlib.contextmanager
def plain_errors(uri: str, what: str) -> Iterator[None]:
    """Turn MLflow's exceptions into one line with the action, the store, and the reason of the failure.

    Raises:
        BadRequestError: instead of any MlflowException, and of errors of the network or a database that pass it.
        OSError: the disk of an SQLite store is full or cannot be written to.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        where = mask_uri(uri)
        if (refused := refused_by_disk(uri, error)) is not None:
            raise refused from error
        reason = reason_of(error)
        if uri.startswith("http") and (status := refused_status(error)) is not None:
            raise BadRequestError(
                f"{what}: the tracking server {where} answers with status {status} each time; look at its log"
            ) from error
        if uri.startswith("http") and is_silence(error):
            raise BadRequestError(
                f"{what}: the tracking server {where} does not answer; start it, or correct MLFLOW_TRACKING_URI"
            ) from error
        if uri.startswith("http") and ("failed with error code 401" in str(error) or "401 Client Error" in str(error)):
            raise BadRequestError(
                f"{what}: the tracking server {where} does not take this login; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or correct them"
            ) from error
        raise BadRequestError(f"{what} ({where}): {reason}") from error


def reason_of(error: BaseException) -> str:
    """Return why a store failed, in one line: the database's own message if MLflow includes it."""
    cause = sqlite_error(error) or error
    said = str(cause).strip().splitlines()
    advice = (
        "; another process holds it, try again when that has ended" if sqlite_code(cause) == sqlite3.SQLITE_BUSY else ""
    )
    return mask_text(said[0] if said else type(error).__name__) + advice


def clause(key: str, value: str) -> str:
    """Return a filter for MLflow's searches that finds every entry whose `key` is `value`, and possibly others.

    The filter language has no escapes: a text is quoted by the kind of quotes that it does not contain. If it contains
    both kinds, a pattern matches any character in place of a single quote or a backslash, which is an escape in
    PostgreSQL's patterns but not in SQLite's. So the caller must compare the results.
    """
    if "'" not in value:
        return f"{key} = '{value}'"
    if '"' not in value:
        return f'{key} = "{value}"'
    pattern = value.replace("'", "_").replace("\\", "_")
    return f"{key} LIKE '{pattern}'"


def refused_status(error: Exception) -> str | None:
    """Return the HTTP status of a server at each attempt, if it gave one: it runs, but with an internal error."""
    found = re.search(r"too many (\d{3}) error responses", str(error))
    return found[1] if found else None


def is_silence(error: Exception) -> bool:
    """Check whether a server did not answer at all."""
    if refused_status(error) is not None:
        return False
    return "Max retries" in str(error) or "failed with exception" in str(error)


def is_final(error: BaseException | None) -> bool:
    """Check whether a retry cannot help, because the request itself was refused."""
    return getattr(error, "error_code", None) in _FINAL
