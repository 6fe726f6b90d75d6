"""Which MLflow store, how it is opened, and one line for what is wrong with it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from kernels_bank.runtime import storage, uris
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.redact import mask_text, mask_uri

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
# What SQLite makes of the system's errors, by its primary code.
_DISK = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_CANTOPEN: errno.ENOENT,
}
# Answers that a second try does not change.
_FINAL = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST"})


@dataclass(frozen=True)
class RunRef:
    """Name a tracking run, small enough to travel to a worker."""

    run_id: str
    tracking_uri: str = field(repr=False)  # may hold a password: print `shown`

    @property
    def shown(self) -> str:
        """Return the tracking URI as it may be printed."""
        return mask_uri(self.tracking_uri)


def tracking_uri(output: str | Path) -> str:
    """Return where runs are recorded: `MLFLOW_TRACKING_URI` if set, else the file `mlflow.db` under a local `output`.

    Raises:
        BadRequestError: the variable does not name a server or an SQLite file, or it is unset and `output` is not
            local (SQLite cannot live on an object store).
    """
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return checked_uri(given)
    if uris.is_s3(output):
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
    """Return `uri` in a form that means the same in any working directory.

    Raises:
        BadRequestError: neither `http(s)://` nor `sqlite:///`. Other databases are reached through `mlflow server`,
            which knows where the artifacts go; MLflow has closed its store of plain folders. Or no host name, or a
            login that is not percent-encoded, so that nobody can tell where it ends.
    """
    if uri.startswith(("http://", "https://")):
        return _checked_server(uri)
    if uri.startswith(_SQLITE) and uri != _SQLITE:
        path = str(uris.at_home(uri.removeprefix(_SQLITE)).absolute())
        if wrong := set("?#%") & set(path):
            raise BadRequestError(f"{path}: an SQLite store cannot lie under a path with '{wrong.pop()}'; move it")
        return _SQLITE + path
    raise BadRequestError(
        f"tracking URI {mask_uri(uri)}: use http(s)://host:port of an mlflow server, or sqlite:///path/mlflow.db"
    )


def _checked_server(uri: str) -> str:
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, readable = None, False
    else:
        readable = "@" not in parts.path + parts.query + parts.fragment and uri.isprintable() and " " not in uri
    if not readable and "@" in uri:
        raise BadRequestError(
            f"tracking URI {mask_uri(uri)}: its user name or password holds characters that mean something else in a "
            "URI; percent-encode them (/ is %2F, @ is %40, # is %23, ? is %3F, a blank is %20), or set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if not readable or not host:
        raise BadRequestError(f"tracking URI {mask_uri(uri)}: no host name, or a wrong port; write http://host:port")
    return uri.rstrip("/")


def without_login(uri: str) -> str:
    """Return a store's URI without its login, which goes into the variables that MLflow takes logins from.

    MLflow puts the URI that it is given into its errors and into the locations that it stores.
    """
    if not uri.startswith(("http://", "https://")):
        return uri
    parts = urlsplit(uri)
    login, at, place = parts.netloc.rpartition("@")
    if not at:
        return uri
    user, colon, password = login.partition(":")
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
    if colon:
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    return parts._replace(netloc=place).geturl()


def sqlite_path(uri: str) -> Path | None:
    """Return the file of an SQLite store, or nothing for a server."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def artifact_root(uri: str) -> Path | None:
    """Return where artifacts of an SQLite store go, beside it; a server decides for itself."""
    database = sqlite_path(uri)
    return database.parent / "mlartifacts" if database else None


def prepare_store(uri: str) -> None:
    """Create the tables of an SQLite store that is not there yet; seconds of work, so start it early in a thread.

    Several processes may call this at once, and a kill leaves either no store or a whole one: it is made under
    another name, behind a lock, and renamed.

    Raises:
        BadRequestError: the folder cannot be written, or the file is there and no SQLite database, or one of another
            version of MLflow.
    """
    database = sqlite_path(uri)
    if database is None:
        return
    try:
        if database.exists():
            with database.open("rb") as file:
                if file.read(16) != b"SQLite format 3\0":
                    raise BadRequestError(f"{database}: not an SQLite database; name another file")
            _refuse_unknown_revision(database)
            return
        database.parent.mkdir(parents=True, exist_ok=True)
        with (database.parent / f".{database.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not database.exists():
                _create_tables(database)
    except OSError as error:
        raise BadRequestError(f"{database}: {error.strerror}; choose another output folder") from error


def _refuse_unknown_revision(database: Path) -> None:
    """Check that this MLflow knows the state of a store's tables; else it would add its own to them."""
    mlflow = importlib.util.find_spec("mlflow")
    assert mlflow is not None
    assert mlflow.origin is not None
    migrations = Path(mlflow.origin).parent / "store" / "db_migrations" / "versions"
    known = {file.name.partition("_")[0] for file in migrations.glob("*.py")}
    try:
        with contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and "alembic_version" not in tables:
                raise BadRequestError(
                    f"{database}: a database of another program (it has a table '{min(tables)}'); nothing was touched, "
                    "name another file"
                )
            found = {revision for (revision,) in connection.execute("SELECT version_num FROM alembic_version")}
    except sqlite3.Error:
        return  # without tables, or not readable now: MLflow says so itself
    if found - known:
        raise BadRequestError(
            f"{database}: made by another version of MLflow (its tables are at {', '.join(sorted(found - known))}); "
            "use that version, or another store"
        )


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
    """Return a client of tracking and registry at `uri`. Of MLflow's global state only a login of the URI is set.

    Raises:
        BadRequestError: an SQLite store that cannot be created, or is locked.
        OSError: as of `plain_errors`.
    """
    _import_mlflow()
    prepare_store(uri)
    from mlflow import MlflowClient

    address = without_login(uri)
    with plain_errors(uri, "cannot open the store"):
        return MlflowClient(tracking_uri=address, registry_uri=address)


def _import_mlflow() -> None:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401 - it sets up its loggers, which are quietened after that

    for name in ("alembic", "mlflow.store.model_registry", "mlflow.tracking"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # its errors are raised too


@contextlib.contextmanager
def plain_errors(uri: str, what: str) -> Iterator[None]:
    """Turn MLflow's exceptions into one line: what was tried, where, and why it failed.

    Raises:
        BadRequestError: in place of any MlflowException, and of what comes through it from the network or a database.
        OSError: the disk of an SQLite store is full, or cannot be written to.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        where = mask_uri(uri)
        if (refused := _refused_by_disk(uri, error)) is not None:
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
    """Return why a store failed, in one line: the database's own words where they came through MLflow."""
    cause = _database_error(error) or error
    said = str(cause).strip().splitlines()
    advice = "; another process holds it, try again when that has ended" if _code(cause) == sqlite3.SQLITE_BUSY else ""
    return mask_text(said[0] if said else type(error).__name__) + advice


def _database_error(error: BaseException) -> sqlite3.Error | None:
    """Return SQLite's error among what led to this one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, sqlite3.Error):
        cause = cause.__cause__ or cause.__context__
    return cause


def _refused_by_disk(uri: str, error: BaseException) -> OSError | None:
    """Return the system's error that SQLite met, if it was one."""
    database, number = sqlite_path(uri), disk_errno(error)
    return OSError(number, os.strerror(number), str(database)) if database and number else None


def disk_errno(error: BaseException) -> int | None:
    """Return the number of the system's error that SQLite met, if it was one: trying again does not help."""
    return _DISK.get(_code(_database_error(error)))


def _code(error: BaseException | None) -> int:
    """Return the primary code of an error of SQLite's; 0 for any other."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def clause(key: str, value: str) -> str:
    """Return a filter for MLflow's searches that finds every entry whose `key` is `value`, and perhaps others.

    Its language knows no escape: a text is quoted by the kind of quotes that it does not hold. With both kinds in it, a
    pattern takes any character in the place of a single quote, and of a backslash, which is an escape in PostgreSQL's
    patterns and none in SQLite's; the caller compares what came.
    """
    if "'" not in value:
        return f"{key} = '{value}'"
    if '"' not in value:
        return f'{key} = "{value}"'
    pattern = value.replace("'", "_").replace("\\", "_")
    return f"{key} LIKE '{pattern}'"


def refused_status(error: Exception) -> str | None:
    """Return the HTTP status that a server gave at each try, if it gave one: it runs, but something in it does not."""
    found = re.search(r"too many (\d{3}) error responses", str(error))
    return found[1] if found else None


def is_silence(error: Exception) -> bool:
    """Check whether a server gave no answer at all."""
    if refused_status(error) is not None:
        return False
    return "Max retries" in str(error) or "failed with exception" in str(error)


def is_final(error: BaseException | None) -> bool:
    """Check whether trying again cannot help: the request itself was refused."""
    return getattr(error, "error_code", None) in _FINAL
