"""No secret passes, wherever it stands; what is no secret passes unchanged."""

from __future__ import annotations

import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.tracking.redact import MASK, mask, mask_text

SECRET = st.text(string.ascii_letters + string.digits + "+/=_-", min_size=8, max_size=40).filter(
    # A value such as 'password' may stand in the text around it.
    lambda text: text not in "s3://bucket/tracking:host?X-Amz-Signature&passwordhttps"
)
WORDS = st.text(string.ascii_lowercase + " ._-/", max_size=40)


@given(WORDS, SECRET, WORDS)
def test_passwords_in_uris_are_masked(before: str, secret: str, after: str):
    secret = secret.replace("/", "")
    masked = mask_text(f"{before} https://user:{secret}@host:5000/path {after}")
    assert masked == f"{before} https://{MASK}@host:5000/path {after}"


@given(SECRET.filter(lambda text: "/" not in text), st.sampled_from(["sig", "X-Amz-Signature", "token", "Signature"]))
def test_signatures_of_presigned_urls_are_masked(secret: str, parameter: str):
    masked = mask_text(f"s3 said https://bucket/key?a=1&{parameter}={secret}&b=2")
    assert masked == f"s3 said https://bucket/key?a=1&{parameter}={MASK}&b=2"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SECRET, st.sampled_from(["AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "GITHUB_TOKEN"]))
def test_this_processs_credentials_are_masked_anywhere(monkeypatch: pytest.MonkeyPatch, secret: str, variable: str):
    with monkeypatch.context() as patch:
        patch.setenv(variable, secret)
        assert secret not in mask_text(f"<{secret}> and {secret}")


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
    ],
)
def test_ordinary_settings_stay_as_they_are(name: str, value: str):
    assert mask(name, value) == value


def test_aws_key_ids_are_masked():
    assert mask_text("id AKIAABCDEFGHIJKLMNOP used") == f"id {MASK} used"
