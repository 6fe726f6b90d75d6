"""What can go wrong with a request, the HTTP status of each, and the one line that leaves the server."""

from __future__ import annotations

import json
import re
from typing import Any

from pipeline.images import BadImageError

# An absolute path or a URI with something behind it: what lies there is the operator's to know, not the client's.
# Names of models (`models:/NAME/3`) have one slash after the colon and stay.
_PLACE = re.compile(r"(?<![\w.~:/<-])(?:[a-z][a-z0-9+.-]*:/)?/[^\s'\"`<>(),;]*[^\s'\"`<>(),;:.]", re.I)
_LONGEST = 500  # characters of an error


class RequestError(ValueError):
    """Report that the request asks for what it cannot have; the text is written for the client."""


class TooLargeError(Exception):
    """Report that the request has more bytes or pixels than the server takes."""


class SlowError(Exception):
    """Report that the request did not arrive in time."""


class BusyError(Exception):
    """Report that the server has no place for the request. `retry_after`: seconds after which there may be one."""

    def __init__(self, text: str, retry_after: int) -> None:
        super().__init__(f"{text}; try again in {retry_after} s")
        self.retry_after = retry_after


class NoReplicaError(BusyError):
    """Report that no replica answered: the one that worked on the request died, or none runs at the moment."""


class LateError(Exception):
    """Report that the request took longer than the time limit."""


class GoneError(Exception):
    """Report that the client hung up before its request was there."""


# The text of these errors is the answer; the text of any other goes to the log alone.
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
    """Return the headers that say when to come again, if the error knows."""
    return {"Retry-After": str(error.retry_after)} if isinstance(error, BusyError) else {}


def error_body(text: str) -> bytes:
    """Return `{"error": text}` on one line, without the places of files and servers that the text may name."""
    return json.dumps({"error": public_text(text)}).encode()


def event(name: str, data: dict[str, Any]) -> bytes:
    """Encode one server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def error_event(status: int, text: str) -> bytes:
    """Encode the event that ends a stream because of an error."""
    return event("error", {"status": status, "error": public_text(text)})


def public_text(text: str) -> str:
    """Return the text on one line, of bounded length; of each absolute path or URI only its last part is left."""
    line = " ".join(text.split())
    return _PLACE.sub(lambda place: _last_part(place.group()), line)[:_LONGEST]


def _last_part(place: str) -> str:
    return re.split(r"[?#]", place)[0].rstrip("/").rpartition("/")[2].rpartition("@")[2] or "..."
