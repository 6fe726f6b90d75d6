"""MLflow stores in an SQLite file: created atomically, and never in another program's database."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import os
import sqlite3
from pathlib import Path
from typing import Any

from kernels_bank.runtime.errors import BadRequestError
from pipeline.tracking.imported import import_mlflow

SQLITE = "sqlite:///"
# The system's errors by SQLite's primary code.
_DISK = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_CANTOPEN: errno.ENOENT,
}


def sqlite_path(uri: str) -> Path | None:
    """Return the file of an SQLite store, or None for a server."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def artifact_root(uri: str) -> Path | None:
    """Return the artifact folder of an SQLite store, next to it; None for a server, which has its own."""
    database = sqlite_path(uri)
    return database.parent / "mlartifacts" if database else None


def prepare_store(uri: str) -> None:
    """Create an SQLite store with its tables if it does not exist. This takes seconds, so start it early in a thread.

    Several processes may call this at once, and a kill leaves either no store or a complete one: it is made under
    another name, with a lock, and renamed.

    Raises:
        BadRequestError: the folder cannot be written to, or the existing file is not an SQLite database or is one of
            another version of MLflow.
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
    """Check that this MLflow knows the schema of a store; otherwise it would add its own tables."""
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
        return  # no tables, or unreadable now: MLflow reports it itself
    if found - known:
        raise BadRequestError(
            f"{database}: made by another version of MLflow (its tables are at {', '.join(sorted(found - known))}); "
            "use that version, or another store"
        )


def _create_tables(database: Path) -> None:
    import_mlflow()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import Engine, event

    unfinished = database.with_name(f".{database.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    # Some seventy migrations, each of which would wait for the disk: 8 s, or 1 s if only the finished file is flushed.
    event.listen(Engine, "connect", _no_flush)
    try:
        store = SqlAlchemyStore(f"{SQLITE}{unfinished}", str(database.parent / "mlartifacts"))
        store.engine.dispose()
    finally:
        event.remove(Engine, "connect", _no_flush)
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    unfinished.rename(database)


def _no_flush(connection: Any, record: object) -> None:  # noqa: ANN401 - the DBAPI has no common type
    connection.execute("PRAGMA synchronous = OFF")


def sqlite_error(error: BaseException) -> sqlite3.Error | None:
    """Return SQLite's error among the causes of an error."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, sqlite3.Error):
        cause = cause.__cause__ or cause.__context__
    return cause


def refused_by_disk(uri: str, error: BaseException) -> OSError | None:
    """Return the system's error behind an error of SQLite, if there is one."""
    database, number = sqlite_path(uri), disk_errno(error)
    return OSError(number, os.strerror(number), str(database)) if database and number else None


def disk_errno(error: BaseException) -> int | None:
    """Return the number of the system's error behind an error of SQLite, if there is one; a retry does not help."""
    return _DISK.get(sqlite_code(sqlite_error(error)))


def sqlite_code(error: BaseException | None) -> int:
    """Return the primary code of an error of SQLite; 0 for any other error."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
