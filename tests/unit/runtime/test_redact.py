"""No secret passes, wherever it stands and however it is written; what is no secret passes unchanged."""

from __future__ import annotations

import html
import json
import string
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels_bank.runtime.redact import MASK, mask, mask_text, mask_uri

# What a URI is made of: by chance alone a password seldom holds one.
_PIECES = ("://", "http://", "A://", "/", ":", "@", "#", "?", "&", "%40", "[", "]", "80", ":5000/", "user:", "x", " ")
PRINTABLE = (
    st.text(string.printable.strip() + " ", min_size=8, max_size=40)
    | st.text(st.characters(exclude_categories=("C", "Z")), min_size=8, max_size=20)
    | st.lists(st.sampled_from(_PIECES), min_size=3, max_size=12).map("".join)
)
TEXT = "error: {}; see http://other:5000/path and mail a@b.org"
# A secret that is part of the text around it would be "found" there.
HARD = PRINTABLE.map(str.strip).filter(lambda secret: len(secret) >= 8 and secret not in TEXT and secret != MASK * 3)
WORDS = st.text(string.ascii_lowercase + " ._-/", max_size=40)
anew = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


def outputs(secret: str) -> dict[str, str]:
    """The same secret as programs write it."""
    uri = f"https://user:{quote(secret, safe='')}@host:5000/path"
    return {
        "raw": secret,
        "repr": repr(secret),
        "json": json.dumps({"note": secret}),
        "json in json": json.dumps(json.dumps(secret)),
        "unicode json": json.dumps(secret, ensure_ascii=False),
        "percent-encoded": quote(secret, safe=""),
        "path-encoded": quote(secret),
        "form-encoded": quote_plus(secret),
        "html": html.escape(secret),
        "uri": uri,
        "raw uri": f"postgresql+psycopg2://user:{secret}@host/db",
        "quoted uri": f'"{uri}"',
        "uri in json": json.dumps({"uri": f"http://user:{secret}@host"}),
        "ipv6": f"http://user:{quote(secret, safe='')}@[::1]:5000/",
        "two": f"{uri} and {uri}",
    }


def hidden(secret: str, text: str) -> bool:
    """Whether none of the ways to write a secret is in a text."""
    forms = {secret, quote(secret, safe=""), quote(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    return not any(form in text for form in forms)


@anew
@given(HARD, st.sampled_from(["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_TOKEN", "DB_PASSWORD"]))
def test_a_secret_of_the_environment_is_masked_in_every_form(
    monkeypatch: pytest.MonkeyPatch, secret: str, variable: str
):
    with monkeypatch.context() as patch:
        patch.setenv(variable, secret)
        for form, text in outputs(secret).items():
            assert hidden(secret, mask_text(TEXT.format(text))), form


@anew
@given(HARD, st.booleans(), st.sampled_from(["MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI", "HTTPS_PROXY"]))
def test_the_password_of_a_uri_of_the_environment_is_masked_in_every_form(
    monkeypatch: pytest.MonkeyPatch, secret: str, encoded: bool, variable: str
):
    with monkeypatch.context() as patch:
        patch.setenv(variable, f"https://user:{quote(secret, safe='') if encoded else secret}@host:5000/path")
        for form, text in outputs(secret).items():
            assert hidden(secret, mask_text(TEXT.format(text))), form


@anew
@given(HARD)
def test_the_password_of_a_uri_of_the_command_line_is_masked(monkeypatch: pytest.MonkeyPatch, secret: str):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["registry.py", "list", f"--tracking-uri=http://user:{secret}@host"])
        assert hidden(secret, mask_text(TEXT.format(secret)))


@anew
@given(HARD.filter(lambda secret: not set(secret) & set("\"'`<>\n ")))
def test_the_login_of_a_uri_that_nobody_knows_is_masked(secret: str):
    # As it should be written, and as people write it.
    for password in (quote(secret, safe=""), secret):
        for uri in (f"https://user:{password}@host/path", f"postgresql+psycopg2://u:{password}@host:1/db"):
            assert password not in mask_text(f"cannot reach {uri} today")
            assert password not in mask_uri(uri)


@anew
@given(HARD)
def test_one_uri_is_masked_whatever_is_in_it(secret: str):
    assert mask_uri(f"http://user:{secret}@host:5000/x") == f"http://{MASK}@host:5000/x"


@given(WORDS, st.text(string.ascii_letters + string.digits + "+=_-", min_size=8), WORDS)
def test_a_masked_uri_is_still_one(before: str, secret: str, after: str):
    masked = mask_text(f"{before} https://user:{secret}@host:5000/path {after}")
    assert masked == f"{before} https://{MASK}@host:5000/path {after}"


@given(
    st.text(string.ascii_letters + string.digits + "+/=_-", min_size=8),
    st.sampled_from(["sig", "X-Amz-Signature", "X-Amz-Security-Token", "token", "access_token", "api_key", "password"]),
)
def test_secret_parameters_are_masked(secret: str, parameter: str):
    masked = mask_text(f"s3 said https://bucket/key?a=1&{parameter}={secret}&b=2 ok")
    assert masked == f"s3 said https://bucket/key?a=1&{parameter}={MASK}&b=2 ok"


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Basic c2VjcmV0c2VjcmV0",
        "{'Authorization': 'Bearer c2VjcmV0c2VjcmV0'}",
        '{"Authorization": "c2VjcmV0c2VjcmV0"}',
        "curl -H 'authorization: bearer c2VjcmV0c2VjcmV0'",
        "MLFLOW_TRACKING_PASSWORD=c2VjcmV0c2VjcmV0 python jobs/train.py",
        '{"db": {"password": "c2VjcmV0c2VjcmV0"}}',
        "{'aws_secret_access_key': 'c2VjcmV0c2VjcmV0'}",
        "https://c2VjcmV0c2VjcmV0@github.com/lab/repo",
        "https://c2VjcmV0c2VjcmV0:x-oauth-basic@github.com/lab/repo",
        "(http://me:c2VjcmV0c2VjcmV0@host)",
        "http://me:c2Vj/cmV0c2VjcmV0@a http://me:c2VjcmV0#c2VjcmV0@b",
        "http://me:12345/c2VjcmV0c2VjcmV0@host",
        "http://me:c2VjcmV0c2VjcmV0://@host",
        "http://me:x://c2VjcmV0c2VjcmV0@host",
        "http://me:80/http://c2VjcmV0c2VjcmV0@host",
        'http://me:c2Vj "c2VjcmV0c2VjcmV0@host',
    ],
    ids=lambda _: "",
)
def test_what_stands_where_secrets_stand_is_masked(text: str):
    assert "cmV0" not in mask_text(text)
    assert mask_text(text) == mask_text(mask_text(text))


def test_basic_authentication_of_a_known_login_is_masked(monkeypatch: pytest.MonkeyPatch):
    import base64

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:p%40ss%2Fword@host")
    assert base64.b64encode(b"me:p@ss/word").decode() not in mask_text(base64.b64encode(b"me:p@ss/word").decode())


@pytest.mark.parametrize(
    "name", ["db.password", "AWS_SECRET_ACCESS_KEY", "apiKey", "api_key", "storage.access_key", "oauth.token"]
)
def test_a_name_that_says_secret_hides_its_value(name: str):
    assert mask(name, "7") == MASK


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.steps", "1000"),
        ("data.shards", "s3://bucket/shards"),
        ("author", "me@example.org"),
        ("data.bank", "file:///data/a@b/bank"),
        ("model.name", "models:/blind-sr-x2@champion"),
        ("tracking", "http://mlflow:5000/#/experiments/1"),
        ("tracking", "the tracking server http://127.0.0.1:5000 does not answer; write to me@example.org"),
        ("note", "see (http://host:80), then http://[::1]:5000/a@b; 'sqlite:////data/runs/mlflow.db'"),
        ("page", "https://host/package@1.0/file"),
        ("advice", "write http://host:port"),
        ("loss", "loss 0.0123 (image 0.01, kernel 0.002) PSNR 31.2 dB 3.4 samples/s data wait 2%"),
        ("token", "the basic idea; bearer of news"),
    ],
    ids=lambda _: "",  # pytest writes a test's name into the environment, whose URIs are searched for
)
def test_ordinary_text_stays_as_it_is(name: str, value: str):
    assert mask_text(value) == value
    if name != "token":
        assert mask(name, value) == value


@given(st.text(string.ascii_letters + string.digits + " .,;()/-_+%[]{}'\"\n", max_size=200))
def test_text_without_a_secret_stays_as_it_is(text: str):
    if "AKIA" not in text and "ASIA" not in text and "asic " not in text and "earer " not in text:
        assert mask_text(text) == text


def test_aws_key_ids_are_masked():
    assert mask_text("id AKIAABCDEFGHIJKLMNOP used") == f"id {MASK} used"


def test_a_file_that_holds_a_secret_is_no_secret(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/run/secrets/ray_token")
    assert mask_text("cannot read /run/secrets/ray_token") == "cannot read /run/secrets/ray_token"


def test_prints_logs_and_tracebacks_of_a_job_are_masked():
    script = (
        "import logging\n"
        "from kernels_bank.runtime.redact import mask_output\n"
        "mask_output()\n"
        "print('would fetch from', 'http://me:pa/ss#word@host', 'to \\xe9')\n"
        "print('progress', end='')\n"
        "logging.getLogger('any').warning('at %s', 'http://me:pa/ss#word@host')\n"
        "raise RuntimeError('cannot reach http://me:pa/ss#word@host')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == f"would fetch from http://{MASK}@host to \xe9\nprogress"
    assert f"at http://{MASK}@host\n" in done.stderr
    assert f"RuntimeError: cannot reach http://{MASK}@host" in done.stderr
    assert "Traceback" in done.stderr


def test_lines_that_nobody_can_read_end_no_work_and_lost_results_are_named():
    script = (
        "import sys\n"
        "from kernels_bank.runtime.redact import mask_output\n"
        "mask_output()\n"
        "print('progress', file=sys.stderr, flush=True)\n"
        "print('x' * 100_000, file=sys.stderr, flush=True)\n"
        "try:\n"
        "    print('result', flush=True)\n"
        "except OSError as error:\n"
        "    sys.exit(3 if error.filename == 'standard output' else 4)\n"
    )
    with Path("/dev/full").open("w") as full:
        lost = subprocess.run(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=full, timeout=60, check=False
        )
        assert (lost.returncode, lost.stdout) == (0, b"result\n")
        assert subprocess.run([sys.executable, "-c", script], stdout=full, stderr=full, check=False).returncode == 3


def test_the_error_line_of_a_job_is_masked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from kernels_bank.runtime.errors import BadRequestError, JobFailedError
    from pipeline.cli import Command, run

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for error, status in ((BadRequestError, 2), (JobFailedError, 1), (KeyboardInterrupt, 130)):

        def job(_: Command, error: type[BaseException] = error) -> None:
            raise error("cannot reach http://me:hunter22@host")

        with pytest.raises(SystemExit) as ended:
            run(Command, job, [])
        assert ended.value.code == status
    shown = capsys.readouterr().err
    assert "hunter22" not in shown
    assert shown.count(f"http://{MASK}@host") == 3
