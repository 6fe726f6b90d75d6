"""What may be written into a tracking store: never a secret."""

from __future__ import annotations

import os
import re

MASK = "***"

_SECRET_NAME = re.compile(
    r"secret|passw|credential|token|api_?key|access_?key|private_?key|account_?key|signing_?key|connection_?string",
    re.I,
)
_USERINFO = re.compile(r"([a-z][a-z0-9+.-]*://)[^/\s@]+@", re.I)
_SIGNATURE = re.compile(r"([?&](?:x-amz-(?:signature|credential|security-token)|signature|sig|token)=)[^&\s\"']+", re.I)
_AWS_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
_ENVIRONMENT = re.compile(r"SECRET|PASSW|TOKEN|ACCESS_KEY", re.I)
# A shorter value is not searched for: it would hit ordinary words.
_SHORTEST_SECRET = 8


def mask(name: str, value: str) -> str:
    """`value` as it may be shown under `name`: whole when harmless, else with the secret parts replaced by `***`.

    Secret are values whose name says so, passwords inside URIs, signatures of pre-signed URLs, AWS key ids, and
    the contents of this process's own credential variables wherever they turn up.
    """
    if _SECRET_NAME.search(name):
        return MASK
    return mask_text(value)


def mask_text(text: str) -> str:
    """`text` without passwords of URIs, signatures, AWS key ids and values of credential variables."""
    text = _USERINFO.sub(rf"\1{MASK}@", text)
    text = _SIGNATURE.sub(rf"\1{MASK}", text)
    text = _AWS_KEY_ID.sub(MASK, text)
    for name, secret in os.environ.items():
        if _ENVIRONMENT.search(name) and len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, MASK)
    return text
