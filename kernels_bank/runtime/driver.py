"""One driver a folder: a second one of the same run or evaluation would do its work twice and mix the results.

Works over any store, without a lock of it: the driver renews an entry in the folder, and an entry that is seen to
change has a driver behind it. Clocks are not compared.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import BadRequestError

ENTRY = "driver.json"


@contextlib.contextmanager
def only_driver(home: str, *, renew_s: float = 5.0) -> Iterator[None]:
    """Be the only one at work on the folder `home` (a URI) until the block ends.

    A driver that was killed leaves its entry behind: on its own machine its process is seen to be gone, from another
    one the entry is watched for three renewals, so going on takes that much longer.

    Raises:
        BadRequestError: another driver is at work.
    """
    where = storage.join(home, ENTRY)
    me = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
    _refuse_living(where, home, 3 * renew_s)
    storage.write_json(where, me | {"renewed": 0})
    ended = threading.Event()

    def renew() -> None:
        count = 0
        while not ended.wait(renew_s):
            count += 1
            # A store that is away for a while costs a renewal, not the run.
            with contextlib.suppress(Exception):
                storage.write_json(where, me | {"renewed": count})

    thread = threading.Thread(target=renew, name="driver-entry", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):
            storage.remove_file(where)


def _refuse_living(where: str, home: str, watch_s: float) -> None:
    if (seen := _read(where)) is None or _is_dead_here(seen):
        return
    end = time.monotonic() + watch_s
    while time.monotonic() < end:
        time.sleep(watch_s / 15)
        now = _read(where)
        if now is None:
            return
        if now != seen:
            raise BadRequestError(
                f"{home}: process {now['pid']} on {now['host']} is at work on it; "
                "wait for it, stop it, or choose another folder"
            )


def _is_dead_here(entry: dict) -> bool:
    """Whether the entry's process was on this machine and is gone."""
    if entry["host"] != socket.gethostname():
        return False
    try:
        os.kill(entry["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return entry["pid"] == os.getpid()  # left by an earlier run of this very process


def _read(where: str) -> dict | None:
    try:
        return dict(storage.read_json(where)) if storage.exists(where) else None
    except ValueError:
        return None  # half written, or deleted while it was read
