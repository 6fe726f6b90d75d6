"""Checks that the tracking store is fit for a run: reachable, of the right version and schema, and accepting files."""

from __future__ import annotations

import uuid

from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.redact import mask_uri
from pipeline.tracking.server import health_status, without_login
from pipeline.tracking.sqlite import sqlite_path
from pipeline.tracking.store import client, plain_errors

_TIMEOUT_S = 20


def check_store(uri: str) -> str:
    """Check every part of a store that a run uses; return a short description of it.

    Raises:
        BadRequestError: the store does not answer, refuses us, has another version or an old schema.
    """
    import mlflow

    with plain_errors(uri, "the tracking store"):
        client(uri).search_experiments(max_results=1)  # opens the database, which refuses an old schema
    if database := sqlite_path(uri):
        return f"SQLite file {database}, schema current"
    theirs = answer(uri, "/version")
    if theirs.split(".")[:2] != mlflow.__version__.split(".")[:2]:
        raise BadRequestError(
            f"the tracking server {mask_uri(uri)} is mlflow {theirs}, here is {mlflow.__version__}; "
            "install the same version on both, then `mlflow db upgrade`"
        )
    return f"mlflow {theirs}, schema current, {_artifacts(uri)}"


def answer(uri: str, path: str) -> str:
    """Return the text of a server's answer to a GET, with credentials from MLflow's variables.

    Raises:
        BadRequestError: the server does not answer, or reports an error.
    """
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        response = http_request(
            get_default_host_creds(without_login(uri)), path, "GET", timeout=_TIMEOUT_S, max_retries=0
        )
    except Exception as error:  # MlflowException or a network error; all mean the same to the user
        raise BadRequestError(
            f"the tracking server {mask_uri(uri)} does not answer; start it, or correct MLFLOW_TRACKING_URI"
        ) from error
    if response.status_code != 200:
        raise BadRequestError(
            f"the tracking server {mask_uri(uri)} answers {response.status_code} to {path}; "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD if it asks for them"
        )
    return str(response.text).strip()


def healthy(uri: str) -> bool:
    """Check whether a server answers from this machine, without importing mlflow."""
    try:
        return health_status(uri, _TIMEOUT_S) in (200, 401, 403)  # the server runs; credentials are checked elsewhere
    except OSError:
        return False


def _artifacts(uri: str) -> str:
    """Write a small file to the server's artifact store, read it back, and delete it."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    path, content = f"/api/2.0/mlflow-artifacts/artifacts/doctor/{uuid.uuid4().hex}", uuid.uuid4().hex
    creds = get_default_host_creds(without_login(uri))
    for method, body in (("PUT", content), ("GET", None), ("DELETE", None)):
        extra = {"data": body} if body else {}
        try:
            response = http_request(creds, path, method, timeout=_TIMEOUT_S, max_retries=0, **extra)
        except Exception as error:
            raise BadRequestError(
                f"the tracking server {mask_uri(uri)} did not answer when a file was sent to it ({method}); "
                "look whether the server reaches its --artifacts-destination"
            ) from error
        if response.status_code in (404, 501, 503) and method == "PUT":
            return "artifacts are not proxied: every client needs the artifact store's credentials"
        if response.status_code != 200 or (method == "GET" and response.text != content):
            raise BadRequestError(
                f"the tracking server {mask_uri(uri)} cannot keep files ({method}: {response.status_code}); "
                "look whether the server reaches its --artifacts-destination"
            )
    return "files come back"
