"""Requests to an S3 server. A failure is reported in one line with the place, the endpoint and the cause.

Endpoint, region and credentials come from the usual AWS variables, including `AWS_ENDPOINT_URL`.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from kernels_bank.runtime.errors import BadRequestError, JobFailedError, UnavailableError

Answer_T = TypeVar("Answer_T")

# Attempts at one request, with pauses that double up to 20 s: it fails after 45 s and 5 minutes, respectively.
TRIES, PATIENT = 8, 20
LONGEST_PAUSE_S = 20.0
_FIRST_TRIES = 3  # if the server has never answered, most likely the endpoint is wrong
_VARIABLES = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_CA_BUNDLE",
)
# Codes of temporary refusals: the server is busy, or the request was damaged in transit.
_PASSING = {"429", "BadDigest", "IncompleteBody", "OperationAborted", "RequestTimeout", "SlowDown", "Throttling"}
_making = threading.Lock()  # threads may share clients, but must not create them concurrently
_hurry = False
_answered = False


class S3Error(OSError, JobFailedError):
    """Report that the server does not answer, or answers incorrectly, after all attempts."""


class S3RefusedError(OSError, UnavailableError):
    """Report a wrong request, endpoint or credentials, for which a retry would not help."""


def expect_answer_soon() -> None:
    """Make this process give up within seconds if the server has never answered, because a user is waiting.

    Without this call, as in the workers of a running job, requests wait for an unavailable server from the start.
    """
    global _hurry
    _hurry = True


def client() -> Any:  # noqa: ANN401 - boto3 has no types
    """Return the boto3 client of the server named by the AWS variables; threads may share it.

    It does not retry: `ask` does. `bucket_and_key` splits a URI for its calls.
    """
    with _making:
        return _client(tuple(os.environ.get(name) for name in _VARIABLES))


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Return the two parts of `s3://bucket/key`, without slashes at the end.

    A key may have empty parts elsewhere: the key of `s3://b//d` is `/d`.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise S3RefusedError(f"{uri}: names no bucket; the form is s3://bucket/prefix")
    return bucket, key.rstrip("/")


def ask(uri: str, action: Callable[[Any], Answer_T], tries: int = TRIES) -> Answer_T:
    """Return the result of `action` with the client. Temporary failures are retried with growing pauses.

    Args:
        uri: URI of the request, for messages.
        action: function of the client; it may raise OSError for an incorrect answer.
        tries: largest number of attempts.

    Raises:
        FileNotFoundError: there is no such object.
        S3RefusedError: the request, the endpoint or the credentials are wrong.
        S3Error: no attempt succeeded.
    """
    global _answered
    for attempt in itertools.count(1):
        try:
            answer = action(client())
        except Exception as error:
            problem = _judge(uri, error)
            if problem is error:
                raise
            limit = min(tries, _FIRST_TRIES) if _hurry and not _answered else tries
            if not isinstance(problem, S3Error) or attempt >= limit:
                raise problem from error
        else:
            _answered = True
            return answer
        time.sleep(min(LONGEST_PAUSE_S, 0.4 * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25))
    raise AssertionError("unreachable")


def _judge(uri: str, error: Exception) -> Exception:
    """Return the error to raise: S3Error if a retry may succeed, `error` itself if it is not about a request."""
    global _answered
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    requests = (boto.ClientError, boto.BotoCoreError, ResponseParserError, OSError, ValueError, RecursionError)
    if isinstance(error, (BadRequestError, FileNotFoundError)) or not isinstance(error, requests):
        return error
    place = f"{uri} (endpoint {_endpoint()})"
    if isinstance(error, RecursionError):
        return S3RefusedError(f"{place}: the answer leads elsewhere, again and again; is it an S3 server?")
    if isinstance(error, boto.ClientError):
        _answered = True
        return _judge_answer(uri, place, error)
    if isinstance(error, ResponseParserError):
        return S3Error(f"{place}: the answer is not one of S3 ({_line(error)})")
    cause = error.kwargs.get("error", error) if isinstance(error, boto.BotoCoreError) else error
    text = _line(cause).rpartition("): ")[2]  # without the name of the connection's class
    if isinstance(error, boto.SSLError) and not _answered:
        return S3RefusedError(f"{place}: no TLS connection ({text}); is it https:// where the server speaks http://?")
    if "NameResolutionError" in repr(cause) and not _answered:
        return S3RefusedError(f"{place}: the server's name is not known ({text})")
    if isinstance(error, boto.ConnectionError):
        return S3Error(f"{place}: no answer ({text})")
    if isinstance(error, (boto.HTTPClientError, boto.IncompleteReadError, boto.FlexibleChecksumError, OSError)):
        return S3Error(f"{place}: no whole answer ({text})")
    return S3RefusedError(f"{place}: {text}")  # missing credentials, a wrong name of a bucket, ...


def _judge_answer(uri: str, place: str, error: Any) -> Exception:  # noqa: ANN401 - a botocore ClientError
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(error.response.get("Error", {}).get("Code", status))
    said = error.response.get("Error", {}).get("Message", "")
    if code == "NoSuchBucket":
        return S3RefusedError(f"{place}: there is no bucket '{bucket_and_key(uri)[0]}'")
    if code == "NoSuchKey" or status == 404:
        return FileNotFoundError(f"{uri}: no such file")
    nameless = code == "400" and error.operation_name != "HeadObject"  # S3 itself always names a code, except for HEAD
    if status >= 500 or code in _PASSING or nameless:
        return S3Error(f"{place}: the server answers {code} ({said})")
    advice = "" if has_credentials() else "; no credentials were found, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return S3RefusedError(f"{place}: refused, {code} ({said}){advice}")


def no_s3_server(uri: str) -> S3RefusedError:
    """Return the error for an endpoint that answers, but not like an S3 server."""
    return S3RefusedError(f"{uri} (endpoint {_endpoint()}): the answer is not one of S3; is the endpoint right?")


def has_credentials() -> bool:
    """Return whether requests are signed; without credentials only public objects can be read."""
    from botocore import UNSIGNED

    return client().meta.config.signature_version is not UNSIGNED


def _endpoint() -> str:
    try:
        return str(client().meta.endpoint_url)
    except Exception:  # the endpoint itself is wrong
        return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "of AWS"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@functools.lru_cache(maxsize=8)
def _client(variables: tuple[str | None, ...]) -> Any:  # noqa: ANN401
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    session = boto3.Session()
    region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=5,
        read_timeout=30,
        max_pool_connections=32,
        # Content-MD5 is sent with each object instead, which every server supports.
        request_checksum_calculation="when_required",
        signature_version=None if session.get_credentials() else UNSIGNED,
    )
    return session.client("s3", region_name=region, config=config)
