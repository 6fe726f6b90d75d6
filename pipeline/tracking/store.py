"""Which MLflow store, how it is opened, and one line for what is wrong with it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import BadRequestError
from pipeline.tracking.redact import mask_text

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Read by mlflow at import or at each request. Three retries give a dead server up after some 15 s, not 4 minutes.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "GIT_PYTHON_REFRESH": "quiet",
}
_SQLITE = "sqlite:///"
# Answers that a second try does not change.
_FINAL = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST"})


@dataclass(frozen=True)
class RunRef:
    """A tracking run, small enough to travel to a worker."""

    run_id: str
    tracking_uri: str = field(repr=False)  # may hold a password: print `shown`

    @property
    def shown(self) -> str:
        """The tracking URI as it may be printed."""
        return mask_text(self.tracking_uri)


def tracking_uri(output: str | Path) -> str:
    """Where runs are recorded: `MLFLOW_TRACKING_URI` if set, else the file `mlflow.db` under a local `output`.

    Raises:
        BadRequestError: the variable does not name a server or an SQLite file, or it is unset and `output` is not
            local (SQLite cannot live on an object store).
    """
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return checked_uri(given)
    if "://" in str(output) and not str(output).startswith("file://"):
        raise BadRequestError(
            f"output {output} is not on this machine and there is no tracking server: set MLFLOW_TRACKING_URI, "
            "for example to http://127.0.0.1:5000, or to sqlite:////absolute/path/mlflow.db"
        )
    return checked_uri(f"{_SQLITE}{storage.resolve(output)[1]}/mlflow.db")


def use_store(output: str | Path) -> str:
    """Make the store of a run under `output` the one that this process looks models up in; returns its URI."""
    uri = tracking_uri(output)
    os.environ["MLFLOW_TRACKING_URI"] = uri
    return uri


def checked_uri(uri: str) -> str:
    """`uri` in a form that means the same in any working directory.

    Raises:
        BadRequestError: neither `http(s)://` nor `sqlite:///`. Other databases are reached through `mlflow server`,
            which knows where the artifacts go; MLflow has closed its store of plain folders.
    """
    if uri.startswith(("http://", "https://")):
        if not urlsplit(uri).hostname:
            raise BadRequestError(f"tracking URI {mask_text(uri)}: no host name; write http://host:port")
        return uri.rstrip("/")
    if uri.startswith(_SQLITE) and uri != _SQLITE:
        path = str(Path(uri.removeprefix(_SQLITE)).expanduser().absolute())
        if wrong := set("?#%") & set(path):
            raise BadRequestError(f"{path}: an SQLite store cannot lie under a path with '{wrong.pop()}'; move it")
        return _SQLITE + path
    raise BadRequestError(
        f"tracking URI {mask_text(uri)}: use http(s)://host:port of an mlflow server, or sqlite:///path/mlflow.db"
    )


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite store, or nothing for a server."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def artifact_root(uri: str) -> Path | None:
    """Where artifacts of an SQLite store go, beside it; a server decides for itself."""
    database = sqlite_path(uri)
    return database.parent / "mlartifacts" if database else None


def prepare_store(uri: str) -> None:
    """Create the tables of an SQLite store that is not there yet; seconds of work, so start it early in a thread.

    Several processes may call this at once, and a kill leaves either no store or a whole one: it is made under
    another name, behind a lock, and renamed.

    Raises:
        BadRequestError: the folder cannot be written, or the file is there and no SQLite database.
    """
    database = sqlite_path(uri)
    if database is None:
        return
    try:
        if database.exists():
            with database.open("rb") as file:
                if file.read(16) != b"SQLite format 3\0":
                    raise BadRequestError(f"{database}: not an SQLite database; name another file")
            return
        database.parent.mkdir(parents=True, exist_ok=True)
        with (database.parent / f".{database.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not database.exists():
                _create_tables(database)
    except OSError as error:
        raise BadRequestError(f"{database}: {error.strerror}; choose another output folder") from error


def _create_tables(database: Path) -> None:
    _import_mlflow()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import Engine, event

    unfinished = database.with_name(f".{database.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    # Some seventy migrations, each waiting for the disk: 8 s, or 1 s when only the finished file is flushed.
    event.listen(Engine, "connect", _no_flush)
    try:
        store = SqlAlchemyStore(f"{_SQLITE}{unfinished}", str(database.parent / "mlartifacts"))
        store.engine.dispose()
    finally:
        event.remove(Engine, "connect", _no_flush)
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    unfinished.rename(database)


def _no_flush(connection: Any, record: object) -> None:  # noqa: ANN401 - the DBAPI has no common type
    connection.execute("PRAGMA synchronous = OFF")


def client(uri: str) -> MlflowClient:
    """A client of tracking and registry at `uri`; nothing of MLflow's global state is read or set.

    Raises:
        BadRequestError: an SQLite store that cannot be created.
    """
    _import_mlflow()
    prepare_store(uri)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _import_mlflow() -> None:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401 - it sets up its loggers, which are quietened after that

    for name in ("alembic", "mlflow.store.db.utils", "mlflow.store.model_registry", "mlflow.tracking"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextlib.contextmanager
def plain_errors(uri: str, what: str) -> Iterator[None]:
    """Turns MLflow's exceptions into one line: what was tried, where, and why it failed.

    Raises:
        BadRequestError: in place of any MlflowException.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        where = mask_text(uri)
        reason = mask_text(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
        if uri.startswith("http") and ("Max retries" in str(error) or "failed with exception" in str(error)):
            raise BadRequestError(
                f"{what}: the tracking server {where} does not answer; start it, or correct MLFLOW_TRACKING_URI"
            ) from error
        raise BadRequestError(f"{what} ({where}): {reason}") from error


def is_final(error: Exception) -> bool:
    """Whether trying again cannot help: the request itself was refused."""
    return getattr(error, "error_code", None) in _FINAL
