"""Media types in headers: names and parameters are case-insensitive, and a client's preferences are numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.serving.errors import RequestError

EVENTS = "text/event-stream"
# RFC 9110: token, or a quoted string with escapes; blanks around `;` but not around `=`, which some clients do send.
_PARAMETER = re.compile(r'\s*;\s*([\w!#$%&\'*+.^`|~-]*)\s*(?:=\s*("(?:[^"\\]|\\.)*"|[^;"]*))?')


def boundary(content_type: str) -> bytes | None:
    """Return the boundary of a form, or None for any other media type.

    Raises:
        RequestError: the form has no boundary.
    """
    kind, parameters = parse(content_type)
    if kind != "multipart/form-data":
        return None
    value = parameters.get("boundary", "")
    if not re.fullmatch(r"[\w'()+,./:=? -]{0,69}[\w'()+,./:=?-]", value, re.ASCII):
        raise RequestError("a form needs a boundary of 1 to 70 characters in its Content-Type")
    return value.encode()


def accepts_json(accept: Iterable[str]) -> bool:
    """Return whether JSON is accepted and PNG is not preferred. By default PNG is sent."""
    ranges = [parse(part) for line in accept for part in _split(line)]
    weights = {kind: _weight(parameters.get("q", "1")) for kind, parameters in ranges}
    json = weights.get("application/json", weights.get("application/*", 0.0))
    png = weights.get("image/png", weights.get("image/*", weights.get("*/*", 0.0)))
    return json > 0 and json >= png


def accepts_events(accept: Iterable[str]) -> bool:
    """Return whether a stream of events is requested by name."""
    ranges = [parse(part) for line in accept for part in _split(line)]
    return any(kind == EVENTS and _weight(given.get("q", "1")) > 0 for kind, given in ranges)


def parse(value: str) -> tuple[str, dict[str, str]]:
    """Split a media type into its name and its parameters, both in lower case; the first of repeated ones counts."""
    kind, _, rest = value.partition(";")
    parameters: dict[str, str] = {}
    for name, text in _PARAMETER.findall(f";{rest}"):
        text = text.strip()
        parameters.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", text[1:-1]) if text[:1] == '"' else text)
    return kind.strip().lower(), parameters


def _split(line: str) -> list[str]:
    """Split at commas outside quotes."""
    return re.findall(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+', line)


def _weight(text: str) -> float:
    return float(text) if re.fullmatch(r"0(\.\d{0,3})?|1(\.0{0,3})?", text) else 0.0
