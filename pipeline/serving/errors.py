"""The errors of a request, their HTTP status, and the one line that the client gets."""

from __future__ import annotations

import json
import re
from typing import Any

from pipeline.images import BadImageError

# An absolute path or a URI with a path, which is not for clients to know. Names of models (`models:/NAME/3`) have one
# slash after the colon and are kept.
_PLACE = re.compile(r"(?<![\w.~:/<-])(?:[a-z][a-z0-9+.-]*:/)?/[^\s'\"`<>(),;]*[^\s'\"`<>(),;:.]", re.I)
_LONGEST = 500  # characters of an error


class RequestError(ValueError):
    """Report an invalid request; the text is written for the client."""


class TooLargeError(Exception):
    """Report that the request has more bytes or pixels than the server accepts."""


class SlowError(Exception):
    """Report that the request did not arrive in time."""


class BusyError(Exception):
    """Report that the server has no place for the request. `retry_after` is the seconds until there may be one."""

    def __init__(self, text: str, retry_after: int) -> None:
        super().__init__(f"{text}; try again in {retry_after} s")
        self.retry_after = retry_after


class NoReplicaError(BusyError):
    """Report that no replica answered: the replica died during the request, or none is running."""


class LateError(Exception):
    """Report that the request took longer than the time limit."""


class GoneError(Exception):
    """Report that the client disconnected before its request was complete."""


# The text of these errors is sent to the client; the text of any other error only goes to the log.
STATUS: dict[type[Exception], int] = {
    RequestError: 400,
    BadImageError: 400,
    GoneError: 400,
    SlowError: 408,
    TooLargeError: 413,
    BusyError: 429,
    NoReplicaError: 503,
    LateError: 504,
}
TOLD = tuple(STATUS)


def status_of(error: Exception) -> int:
    """Return the HTTP status of one of the errors above."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def retry_headers(error: Exception) -> dict[str, str]:
    """Return the Retry-After header if the error has a time."""
    return {"Retry-After": str(error.retry_after)} if isinstance(error, BusyError) else {}


def error_body(text: str) -> bytes:
    """Return `{"error": text}` on one line, without paths of files and addresses of servers."""
    return json.dumps({"error": public_text(text)}).encode()


def event(name: str, data: dict[str, Any]) -> bytes:
    """Encode one server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def error_event(status: int, text: str) -> bytes:
    """Encode the event that ends a stream because of an error."""
    return event("error", {"status": status, "error": public_text(text)})


def public_text(text: str) -> str:
    """Return the text on one line, of bounded length; absolute paths and URIs are cut to their last part."""
    line = " ".join(text.split())
    return _PLACE.sub(lambda place: _last_part(place.group()), line)[:_LONGEST]


def _last_part(place: str) -> str:
    return re.split(r"[?#]", place)[0].rstrip("/").rpartition("/")[2].rpartition("@")[2] or "..."
