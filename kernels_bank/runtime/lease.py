"""A lease that allows one writer per place: a second writer would repeat the work or delete the first one's files.

The writer keeps an entry in the place, made by an atomic create: `O_EXCL` in a folder, a conditional PUT on S3. It
renews the entry regularly. An entry that is seen to change has a live writer, so clocks are never compared. To take
over a dead writer's entry, a process replaces exactly the entry that it has watched, so only one process succeeds.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from kernels_bank.runtime import uris
from kernels_bank.runtime.errors import BadRequestError, JobFailedError
from kernels_bank.runtime.lease_store import Entry, LeaseStore, lease_store
from kernels_bank.runtime.process import is_gone, this_process

ENTRY = ".writer.json"
RENEW_S = 5.0
_LOST_RACES = 20  # attempts to win against others that hold the lease only for a moment, such as two checks


class Lease:
    """Hold the right to write to a place, obtained from `only_writer`."""

    def __init__(self, place: str, store: LeaseStore, token: str) -> None:
        self._place, self._store, self._token = place, store, token

    def check(self) -> None:
        """Check the entry again. Call this before writing files that others rely on, such as a manifest.

        Raises:
            JobFailedError: another writer has taken over, because this one did not renew its entry for too long.
        """
        entry = self._store.read()
        if entry is None:
            raise JobFailedError(f"{self._place}: {ENTRY} was deleted while this process wrote; run the command again")
        if entry.content.get("token") != self._token:
            raise JobFailedError(
                f"{self._place}: taken over by {_holder(entry.content)} while this process stood still; "
                "nothing more was written, run the command again when that one is done"
            )


@contextlib.contextmanager
def only_writer(place: str, *, renew_s: float = RENEW_S) -> Iterator[Lease]:
    """Hold the lease of a folder or prefix until the block ends.

    A killed writer leaves its entry behind. On its own machine, its process is seen to be gone. On another machine, the
    entry is watched for three renewals, so taking over is that much slower.

    Args:
        place: path or URI of the folder or prefix; it is created if it does not exist.
        renew_s: seconds between two renewals.

    Raises:
        BadRequestError: another writer holds the lease, or the place has a name that is not UTF-8.
    """
    uris.refuse_odd_name(place)
    store, token = lease_store(uris.join(place, ENTRY)), uuid.uuid4().hex
    content = this_process() | {"token": token, "since": time.strftime("%Y-%m-%d %H:%M:%S"), "renewed": 0}
    try:
        _acquire(place, store, content, 3 * renew_s)
    except OSError as error:
        if isinstance(error, JobFailedError | BadRequestError) or error.errno == errno.ENOSPC:
            raise  # the S3 server does not answer, or the disk is full: not a bad request
        raise BadRequestError(
            f"{place}: cannot be written to ({error.strerror or error}); choose another place"
        ) from error
    if weakness := store.weakness():
        print(f"{place}: {weakness}", file=sys.stderr, flush=True)
    ended = threading.Event()

    def renew() -> None:
        count = 0
        while not ended.wait(renew_s):
            count += 1
            # While the store is unavailable, only a renewal is lost, not the work.
            with contextlib.suppress(Exception):
                entry = store.read()
                if entry is None or entry.content.get("token") != token:
                    return  # taken over, which `check` reports
                store.replace(entry, content | {"renewed": count})

    thread = threading.Thread(target=renew, name="renew-lease", daemon=True)
    thread.start()
    try:
        yield Lease(place, store, token)
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):
            if (entry := store.read()) is not None and entry.content.get("token") == token:
                store.remove(entry)


def refuse_second_writer(place: str, *, renew_s: float = RENEW_S) -> None:
    """Check that a place has no writer, without taking the lease.

    Raises:
        BadRequestError: another writer holds the lease.
    """
    store = lease_store(uris.join(place, ENTRY))
    if (entry := store.read()) is not None:
        _watch(place, store, entry, 3 * renew_s)


def _acquire(place: str, store: LeaseStore, content: dict[str, Any], watch_s: float) -> None:
    for _ in range(_LOST_RACES):
        if store.create(content):
            return
        entry = store.read()
        if entry is not None:
            dead = _watch(place, store, entry, watch_s)
            if dead is not None and store.replace(dead, content):
                return
    raise BadRequestError(f"{place}: other processes come and go there; run the command again when they are done")


def _watch(place: str, store: LeaseStore, entry: Entry, watch_s: float) -> Entry | None:
    """Return the entry of a dead writer; None if it has gone meanwhile. Raises BadRequestError if it changes."""
    gone = is_gone(entry.content)
    if gone:
        return entry
    if gone is False:
        raise _refusal(place, entry.content)
    end = time.monotonic() + watch_s
    while time.monotonic() < end:
        time.sleep(watch_s / 15)
        now = store.read()
        if now is None:
            return None
        if now.version != entry.version:
            raise _refusal(place, now.content)
    return entry


def _refusal(place: str, content: dict[str, Any]) -> BadRequestError:
    return BadRequestError(
        f"{place}: {_holder(content)} is at work on it; wait for it, stop it, or choose another place"
    )


def _holder(content: dict[str, Any]) -> str:
    known = {key: str(content.get(key, "?")).replace("\n", " ")[:100] for key in ("pid", "host", "since")}
    return f"process {known['pid']} on {known['host']} (since {known['since']})"
