"""MLflow servers: their addresses, the logins in addresses, and the check that a server answers."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from urllib.parse import unquote, urlsplit

from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.redact import mask_uri

_PATIENCE_S = 30
_answered: set[str] = set()


def checked(uri: str) -> str:
    """Return a server's URI in normal form. Raises BadRequestError if it has no host, an invalid login, or a query."""
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, readable = None, False
    else:
        readable = "@" not in parts.path + parts.query + parts.fragment and uri.isprintable() and " " not in uri
    if not readable and "@" in uri:
        raise BadRequestError(
            f"tracking URI {mask_uri(uri)}: its user name or password holds characters that mean something else in a "
            "URI; percent-encode them (/ is %2F, @ is %40, # is %23, ? is %3F, a blank is %20), or set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if not readable or not host:
        raise BadRequestError(f"tracking URI {mask_uri(uri)}: no host name, or a wrong port; write http://host:port")
    if parts.query or parts.fragment:
        raise BadRequestError(
            f"tracking URI {mask_uri(uri)}: a browser's address of a page of the server; write http://host:port, "
            "without what follows '?' or '#'"
        )
    return uri.rstrip("/")


def without_login(uri: str) -> str:
    """Return a store's URI without its login, which is moved to the variables from which MLflow reads logins.

    MLflow includes its URI in errors and in stored locations.
    """
    if not uri.startswith(("http://", "https://")):
        return uri
    parts = urlsplit(uri)
    login, at, place = parts.netloc.rpartition("@")
    if not at:
        return uri
    user, colon, password = login.partition(":")
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
    if colon:
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    return parts._replace(netloc=place).geturl()


def expect_answer(uri: str) -> None:
    """Check once per process that a server answers, since MLflow would wait eight minutes for a silent one.

    A server that refuses the connection passes, since MLflow retries soon.

    Raises:
        BadRequestError: the server was silent for half a minute.
    """
    address = without_login(uri)
    if address in _answered:
        return
    try:
        health_status(uri, _PATIENCE_S)
    except OSError as error:
        if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
            raise BadRequestError(
                f"the tracking server {mask_uri(uri)} said nothing for {_PATIENCE_S} s; restart it, or correct "
                "MLFLOW_TRACKING_URI"
            ) from error
        return
    _answered.add(address)


def health_status(uri: str, patience: float) -> int:
    """Return the HTTP status of a server's health endpoint, without importing mlflow.

    Args:
        uri: URI of the server.
        patience: longest silence in seconds.

    Raises:
        OSError: the server cannot be reached.
    """
    try:
        with urllib.request.urlopen(f"{without_login(uri)}/health", timeout=patience) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (ValueError, http.client.HTTPException) as error:  # an impossible host name, or an answer that is not HTTP
        raise OSError(str(error)) from error
