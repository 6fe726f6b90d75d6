"""What may be shown or stored: never a secret.

The secrets that this process knows (of its environment and its command line) are searched for by value, in every form
in which a program writes a value. Of all other text the parts that hold secrets by their place are masked: the login of
a URI, the values of parameters whose name says so, HTTP's Authorization, AWS key ids.
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
# Variables that hold a secret, not where one lies.
_SECRET_VARIABLE = re.compile(
    r"(?!.*(?:_PATH|_FILE|_DIR|_MODE|_URL|_URI)$).*"
    r"(?:SECRET|PASSW|PASSPHRASE|CREDENTIAL|TOKEN|_PWD$|PRIVATE_?KEY|API_?KEY|ACCESS_?KEY)",
    re.I | re.S,
)
# A shorter value is not searched for: it would hit ordinary words.
_SHORTEST_SECRET = 8

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.I)
# Where a URI in running text surely ends. A login may hold more than that: see `_login_end`.
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
    """Return `value` as it may be shown under `name`: nothing of it when the name says secret, else `mask_text`."""
    return MASK if _SECRET_NAME.search(name) else mask_text(value)


def mask_text(text: str) -> str:
    """Return `text` without its secrets.

    Ordinary text comes back as it is. A login of a URI is masked generously: where a password holds characters that
    should have been percent-encoded, such as `/`, too much is masked rather than too little.
    """
    for form in _known_forms(tuple(os.environ.items()), tuple(sys.argv)):
        text = text.replace(form, MASK)
    text = _mask_logins(text)
    for pattern in (_PARAMETER, _ASSIGNED, _AUTHORIZATION, _SCHEMED_TOKEN):
        text = pattern.sub(rf"\1{MASK}", text)
    text = _FIELD.sub(rf'\1"{MASK}"', text)
    return _AWS_KEY_ID.sub(MASK, text)


def mask_uri(uri: str) -> str:
    """Return one URI without its login, which here is all that stands before its last `@`.

    >>> mask_uri("https://me:p@ss@server/path")
    'https://***@server/path'
    """
    scheme, separator, rest = uri.partition("://")
    _login, at, after = rest.rpartition("@")
    return mask_text(f"{scheme}{separator}{MASK}@{after}" if separator and at else uri)


def mask_output() -> None:
    """Make what this process prints and logs, and the traceback of an error that nobody handles, come out masked.

    What nobody can read any more ends no work: lines to a standard error whose disk is full, whose reader has left or
    whose terminal is gone are dropped. Of standard output, which holds the results, that is an error with its name.
    A stream that is no text file, as a notebook has it, stays as it is.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, _MaskedStream):
            setattr(sys, name, _MaskedStream(stream, results=name == "stdout"))
    sys.excepthook = _print_masked


class _MaskedStream(io.TextIOWrapper):
    """Write to where another stream writes, with each written text masked as a whole."""

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
    """Mask what stands between `scheme://` and the `@` before the host, in every URI of a text."""
    if "://" not in text:  # looked for in one long word, a scheme costs the square of its length
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
    """Return where the `@` stands that ends the login of a URI whose authority begins at `start`; None without one."""
    authority = _AUTHORITY.match(text, start)
    assert authority is not None  # it may be empty
    word_end = found.start() if (found := _URI_END.search(text, start)) else len(text)
    if "@" in authority[0]:
        # A password may hold an `@` and a `/` more.
        return text.rindex("@", start, word_end)
    host = _HOST.fullmatch(authority[0])
    if host is not None and (not host[1] or authority[0].startswith("[")):
        return None  # a host without a port, or an address: nothing in this is a login
    if host is not None:
        # `host:80/path` or `user:80/rest of the password@host`: the latter when an `@` follows in the same word.
        at = text.rfind("@", start, word_end)
        return at if at >= 0 else None
    # What follows the colon is no port, so it is a password with a blank, a quote or a slash in it. A `://` in the same
    # word is the password's: the next URI begins a word of its own.
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
    """Yield what may be the password, or the whole login, of the URIs in a text that is known to be no prose.

    In a URI that was written without percent-encoding no rule tells where the password ends: every `@` may end it.
    """
    for scheme in _SCHEME.finditer(text):
        rest = text[scheme.end() :]
        # A user name holds none of these; without one, the part before the `@` is a token.
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
    """Return what HTTP's basic authentication makes of a login."""
    return base64.b64encode(f"{user}:{password}".encode("utf-8", "surrogateescape")).decode()


def _forms(secret: str) -> Iterable[str]:
    """Return a secret as programs write it: encoded for a URI and not, in JSON, in Python, in HTML."""
    plain = {secret, unquote(secret), unquote_plus(secret)}
    encoded = set()
    for text in plain:
        # A byte that is no UTF-8 (Python's surrogates) cannot be encoded by the standard rules.
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
