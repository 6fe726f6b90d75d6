"""Masking of secrets in everything that is shown or stored.

The secrets that this process knows (from its environment and its command line) are searched for by value, in every form
in which a program writes a value. In all other text, masking goes by position: the login of a URI, the values of
parameters with telling names, HTTP's Authorization, AWS key ids.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from kernels_bank.runtime import os_errors

MASK = "***"
STANDARD_OUTPUT = "standard output"  # the name that errors of writing results have

_SECRET_NAME = re.compile(
    r"secret|passw|passphrase|credential|token|api_?key|access_?key|private_?key|account_?key|signing_?key"
    r"|connection_?string",
    re.I,
)
# Variables that hold a secret itself, not the place of one.
_SECRET_VARIABLE = re.compile(
    r"(?!.*(?:_PATH|_FILE|_DIR|_MODE|_URL|_URI)$).*"
    r"(?:SECRET|PASSW|PASSPHRASE|CREDENTIAL|TOKEN|_PWD$|PRIVATE_?KEY|API_?KEY|ACCESS_?KEY)",
    re.I | re.S,
)
# Shorter values are not searched for, since they would match ordinary words.
_SHORTEST_SECRET = 8

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.I)
# Characters that surely end a URI in running text. A login may contain some of them: see `_login_end`.
_URI_END = re.compile(r"[\s\"'`<>]")
_AUTHORITY = re.compile(r"[^/?#\s\"'`<>]*")
# `host`, `host:port`, `[::1]:port`; punctuation of the sentence around it may follow.
_HOST = re.compile(r"(?:\[[0-9a-f:.%]*\]|[^:@\[\]]*)(:\d*)?[)\]}.,;:!]*", re.I)

_NAMED = r"[\w.-]*(?:secret|passw|passphrase|credential|token|api_?key|access_?key|private_?key|signature)[\w.-]*|sig"
_PARAMETER = re.compile(rf"([?&;](?:{_NAMED})=)[^&\s\"'`<>]+", re.I)
_ASSIGNED = re.compile(rf"(\b(?:{_NAMED})=)(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s&\"'`<>,;)]+)", re.I)
_FIELD = re.compile(
    rf"((?P<quote>[\"'])(?:{_NAMED})(?P=quote)\s*:\s*)(?:\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')", re.I
)
_AUTHORIZATION = re.compile(
    r"(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:(?:basic|bearer|digest|negotiate|aws4-hmac-sha256)\s+)?)[^\s\"',]+", re.I
)
_SCHEMED_TOKEN = re.compile(r"(\b(?:Basic|Bearer)\s+)[A-Za-z0-9+/=_.~-]{8,}")
_AWS_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")


def mask(name: str, value: str) -> str:
    """Return `value` as it may be shown under `name`: fully masked for the name of a secret, else by `mask_text`."""
    return MASK if _SECRET_NAME.search(name) else mask_text(value)


def mask_text(text: str) -> str:
    """Return `text` without its secrets.

    Ordinary text is returned unchanged. A login of a URI is masked generously: if a password has characters that should
    have been percent-encoded, such as `/`, too much is masked rather than too little.
    """
    for form in _known_forms(tuple(os.environ.items()), tuple(sys.argv)):
        text = text.replace(form, MASK)
    text = _mask_logins(text)
    for pattern in (_PARAMETER, _ASSIGNED, _AUTHORIZATION, _SCHEMED_TOKEN):
        text = pattern.sub(rf"\1{MASK}", text)
    text = _FIELD.sub(rf'\1"{MASK}"', text)
    return _AWS_KEY_ID.sub(MASK, text)


def mask_uri(uri: str) -> str:
    """Return a URI without its login, here everything before its last `@`.

    >>> mask_uri("https://me:p@ss@server/path")
    'https://***@server/path'
    """
    scheme, separator, rest = uri.partition("://")
    _login, at, after = rest.rpartition("@")
    return mask_text(f"{scheme}{separator}{MASK}@{after}" if separator and at else uri)


def mask_output() -> None:
    """Mask everything that this process prints and logs, including the traceback of an unhandled error.

    Failed writes to standard error do not end the work: its lines are dropped if the disk is full, the reader has
    exited or the terminal is gone. For standard output, which holds the results, this is an error that names it. A
    stream that is not a text file, as in a notebook, is left as it is.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, _MaskedStream):
            setattr(sys, name, _MaskedStream(stream, results=name == "stdout"))
    sys.excepthook = _print_masked


class _MaskedStream(io.TextIOWrapper):
    """Write to another stream's target, masking each written text as a whole."""

    def __init__(self, shown: io.TextIOWrapper, *, results: bool) -> None:
        shown.flush()
        self._results = results
        super().__init__(
            shown.buffer, shown.encoding, shown.errors, "", shown.line_buffering, write_through=shown.write_through
        )

    def write(self, text: str) -> int:
        with self._refusals():
            super().write(mask_text(text))
        return len(text)

    def flush(self) -> None:
        with self._refusals():
            super().flush()

    def _refusals(self) -> contextlib.AbstractContextManager[None]:
        return os_errors.named(STANDARD_OUTPUT) if self._results else contextlib.suppress(OSError)

    def close(self) -> None:
        self.flush()  # the buffer belongs to the wrapped stream


def _print_masked(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(mask_text("".join(traceback.format_exception(kind, error, trace))))


def _mask_logins(text: str) -> str:
    """Mask everything between `scheme://` and the `@` before the host, in every URI of a text."""
    if "://" not in text:  # in one long word, the search for a scheme costs the square of its length
        return text
    parts, done = [], 0
    for scheme in _SCHEME.finditer(text):
        if scheme.start() < done:
            continue
        end = _login_end(text, scheme.end())
        if end is not None:
            parts += [text[done : scheme.end()], MASK]
            done = end
    return "".join([*parts, text[done:]])


def _login_end(text: str, start: int) -> int | None:
    """Return the position of the `@` after the login of a URI whose authority begins at `start`; None without one."""
    authority = _AUTHORITY.match(text, start)
    assert authority is not None  # it may be empty
    word_end = found.start() if (found := _URI_END.search(text, start)) else len(text)
    if "@" in authority[0]:
        # A password may contain another `@` and a `/`.
        return text.rindex("@", start, word_end)
    host = _HOST.fullmatch(authority[0])
    if host is not None and (not host[1] or authority[0].startswith("[")):
        return None  # a host without a port, or an address: there is no login
    if host is not None:
        # `host:80/path` or `user:80/rest of the password@host`: the latter if an `@` follows in the same word.
        at = text.rfind("@", start, word_end)
        return at if at >= 0 else None
    # No port follows the colon, so it is a password with a blank, a quote or a slash in it. A `://` in the same word
    # belongs to the password, since the next URI begins a new word.
    line_end = text.find("\n", start)
    line_end = len(text) if line_end < 0 else line_end
    if following := _SCHEME.search(text, word_end, line_end):
        line_end = following.start()
    at = text.rfind("@", start, line_end)
    return at if at >= 0 else None


@functools.lru_cache(maxsize=4)
def _known_forms(environment: tuple[tuple[str, str], ...], arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Return all forms of the secrets of an environment and a command line, the longest first."""
    secrets = {value for name, value in environment if _SECRET_VARIABLE.match(name)}
    for text in (*(value for _, value in environment), *arguments):
        secrets.update(_logins(text))
    users = [value for name, value in environment if name.endswith("USERNAME")]
    basic = {_basic(user, secret) for user in users for secret in secrets}
    forms = {form for secret in secrets | basic for form in _forms(secret)}
    return tuple(sorted((form for form in forms if len(form) >= _SHORTEST_SECRET), key=lambda form: (-len(form), form)))


def _logins(text: str) -> Iterator[str]:
    """Yield the possible passwords or logins of the URIs in a text that is not prose.

    Without percent-encoding, no rule determines where a password ends: every `@` may end it.
    """
    for scheme in _SCHEME.finditer(text):
        rest = text[scheme.end() :]
        # A user name has none of these characters; without a user name, the part before the `@` is a token.
        user = re.match(r"[^:/?#@\s]*", rest)
        assert user is not None  # it may be empty
        begin = user.end() + 1 if rest[user.end() :].startswith(":") else 0
        for at in (position for position, character in enumerate(rest) if character == "@" and position >= begin):
            secret = rest[begin:at]
            if begin or "/" not in secret:
                yield secret
            if begin:
                yield _basic(unquote(user[0]), unquote(secret))


def _basic(user: str, password: str) -> str:
    """Return a login in the form of HTTP's basic authentication."""
    return base64.b64encode(f"{user}:{password}".encode("utf-8", "surrogateescape")).decode()


def _forms(secret: str) -> Iterable[str]:
    """Return the forms in which programs write a secret: plain, encoded for a URI, in JSON, in Python, in HTML."""
    plain = {secret, unquote(secret), unquote_plus(secret)}
    encoded = set()
    for text in plain:
        # A byte that is not UTF-8 (a surrogate in Python) cannot be encoded by the standard rules.
        raw = text.encode("utf-8", "surrogateescape")
        for safe in ("", "/", "/:", "~!$&'()*+,;=", "!#$%&'()*+,/:;=?@[]~"):
            encoded |= {(form := quote(raw, safe=safe)), re.sub("%[0-9A-F]{2}", lambda m: m[0].lower(), form)}
        encoded.add(quote_plus(raw))
        encoded.add(base64.b64encode(raw).decode())
    written = set()
    for text in plain | encoded:
        for form in (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1]):
            written |= {form, json.dumps(form)[1:-1]}
        written |= {html.escape(text), html.escape(text, quote=False), " ".join(text.split())}
    return plain | encoded | written
