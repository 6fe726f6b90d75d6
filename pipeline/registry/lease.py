"""One at a time, over any store: an entry of the registry that serves as a lock.

MLflow has no compare-and-set, but a registered model's name is a primary key: of several that create
`NAME.promotion` at once, one succeeds, on SQLite, on PostgreSQL and over HTTP.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.redact import mask_text
from pipeline.names import LEASE
from pipeline.tracking.sqlite import disk_errno
from pipeline.tracking.store import client, plain_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PATIENCE_S = 3.0  # a wait longer than this is said
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """Hold the right to change a model's aliases, for `hold_s` from when it was asked for."""

    name: str  # of the model
    hold_s: float
    since: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Call before each write. Raises BadRequestError when so much time is gone that others may take over."""
        if time.monotonic() - self.since > self.hold_s / 2:
            raise BadRequestError(
                f"the store answered too slowly: after {self.hold_s / 2:g} s another process may be changing "
                f"'{self.name}'; nothing more was changed, run the same command again"
            )


@contextlib.contextmanager
def exclusive(uri: str, name: str, *, hold_s: float = 30.0, wait_s: float = 120.0) -> Iterator[Lease]:
    """Wait for all others that change model `name`, then keep them out until the block ends.

    A holder that died is noticed by its entry standing unchanged for `hold_s`: a time that every waiter measures for
    itself, so that clocks need not agree. It is taken over by renaming the entry to a name that only that holder's
    entry can get, which again one waiter alone succeeds in.

    Args:
        uri: tracking URI.
        name: of a registered model.
        hold_s: how long a holder may take; half of it until its last write, the rest is for the write itself.
        wait_s: how long to wait for the others.

    Raises:
        BadRequestError: the others take longer than `wait_s`, or the store cannot be reached.
    """
    api, token = client(uri), uuid.uuid4().hex
    with plain_errors(uri, f"cannot lock model '{name}'"):
        lease = _acquire(api, name, token, hold_s, wait_s)
    try:
        yield lease
    finally:
        # After that time the entry may be somebody else's.
        if time.monotonic() - lease.since < hold_s:
            try:
                api.delete_registered_model(name + LEASE)
            except Exception as error:
                _log.warning("the lock of '%s' stays for %g s: %s", name, hold_s, mask_text(str(error)))


def _acquire(api: MlflowClient, name: str, token: str, hold_s: float, wait_s: float) -> Lease:
    from mlflow.exceptions import MlflowException

    started = time.monotonic()
    holder, holder_since, said = "", started, False
    while True:
        lease = Lease(name, hold_s)
        try:
            api.create_registered_model(
                name + LEASE, description=f"{token} held by process {os.getpid()} on {socket.gethostname()}"
            )
        except MlflowException as error:
            if not _passes(error):
                raise
        else:
            return lease
        found = _holder(api, name)
        if found.startswith(token):
            return lease  # made by the request above, whose answer was lost on the way
        now = time.monotonic()
        if found != holder:
            holder, holder_since = found, now
        if now - started > wait_s:
            raise BadRequestError(f"model '{name}' is being changed by another process ({found[33:]}); try again later")
        if found and now - holder_since > hold_s:
            _bury(api, name, found)
        elif now - started > _PATIENCE_S and not said:
            said = True
            _log.warning("waiting: model '%s' is being changed by another process (%s)", name, found[33:])
        time.sleep(random.uniform(0.1, 0.3))


def _holder(api: MlflowClient, name: str) -> str:
    """What the present holder wrote about itself; empty when it has just gone."""
    from mlflow.exceptions import MlflowException

    try:
        return str(api.get_registered_model(name + LEASE).description or "unknown")
    except MlflowException as error:
        if not _passes(error):
            raise
        return ""


def _bury(api: MlflowClient, name: str, holder: str) -> None:
    """Take a dead holder's entry out of the way. Its new name stays for ever, so no second try hits a live entry."""
    from mlflow.exceptions import MlflowException

    try:
        api.rename_registered_model(name + LEASE, f"{name}.{holder.split()[0]}{LEASE}")
    except MlflowException as error:
        # BAD_REQUEST: another waiter renamed it between the server's reading and its writing.
        if not _passes(error) and error.error_code != "BAD_REQUEST":
            raise


def _passes(error: Exception) -> bool:
    """Whether the error only says that another process was faster, or that SQLite was busy."""
    codes = ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST", "TEMPORARILY_UNAVAILABLE")
    # MLflow calls every error of a database a temporary one, of a read-only file too.
    return getattr(error, "error_code", None) in codes and disk_errno(error) is None
