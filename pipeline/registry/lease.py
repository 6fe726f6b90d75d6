"""A lock over any store, kept as an entry of the registry.

MLflow has no compare-and-set, but a registered model's name is a primary key: if several processes create
`NAME.promotion` at once, exactly one succeeds, on SQLite, on PostgreSQL and over HTTP.
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

_PATIENCE_S = 3.0  # longer waits are reported
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """Hold the right to change a model's aliases, for `hold_s` from the time of the request."""

    name: str  # name of the model
    hold_s: float
    since: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Check the lease before each write. Raises BadRequestError if it is so old that others may take over."""
        if time.monotonic() - self.since > self.hold_s / 2:
            raise BadRequestError(
                f"the store answered too slowly: after {self.hold_s / 2:g} s another process may be changing "
                f"'{self.name}'; nothing more was changed, run the same command again"
            )


@contextlib.contextmanager
def exclusive(uri: str, name: str, *, hold_s: float = 30.0, wait_s: float = 120.0) -> Iterator[Lease]:
    """Wait for the lock of model `name`, then hold it until the block ends.

    A holder counts as dead if its entry does not change for `hold_s`, which every waiter measures itself, so that
    clocks need not agree. The lock is taken over by renaming the entry to a name that only that holder's entry can get,
    so exactly one waiter succeeds.

    Args:
        uri: tracking URI.
        name: name of a registered model.
        hold_s: seconds that a holder may take; half of it until its last write, the rest for the write itself.
        wait_s: longest wait for other holders in seconds.

    Raises:
        BadRequestError: others hold the lock for longer than `wait_s`, or the store cannot be reached.
    """
    api, token = client(uri), uuid.uuid4().hex
    with plain_errors(uri, f"cannot lock model '{name}'"):
        lease = _acquire(api, name, token, hold_s, wait_s)
    try:
        yield lease
    finally:
        # After that time the entry may belong to another process.
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
            return lease  # created by the request above, whose answer was lost
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
    """Return the present holder's description of itself; empty if it has just released the lock."""
    from mlflow.exceptions import MlflowException

    try:
        return str(api.get_registered_model(name + LEASE).description or "unknown")
    except MlflowException as error:
        if not _passes(error):
            raise
        return ""


def _bury(api: MlflowClient, name: str, holder: str) -> None:
    """Rename a dead holder's entry. Its new name is never freed, so a second attempt cannot affect a live entry."""
    from mlflow.exceptions import MlflowException

    try:
        api.rename_registered_model(name + LEASE, f"{name}.{holder.split()[0]}{LEASE}")
    except MlflowException as error:
        # BAD_REQUEST: another waiter renamed it between the server's read and its write.
        if not _passes(error) and error.error_code != "BAD_REQUEST":
            raise


def _passes(error: Exception) -> bool:
    """Return whether the error only means that another process was faster, or that SQLite was busy."""
    codes = ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST", "TEMPORARILY_UNAVAILABLE")
    # MLflow calls every error of a database temporary, even that of a read-only file.
    return getattr(error, "error_code", None) in codes and disk_errno(error) is None
