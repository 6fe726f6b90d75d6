"""The model card of a version with raw and averaged weights, and of one without."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from pipeline.registry.package import DIGEST, INPUT, RAW, card, requirements

MANIFEST = {
    "kind": "blind",
    "kernel_size": 21,
    "config": {"scales": [2], "unfoldings": 6},
    "sha256": {"weights.safetensors": "1" * 64, "codec.safetensors": "2" * 64},
}
RUN = SimpleNamespace(info=SimpleNamespace(run_name="run", run_id="0123"))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("picture", [True, False])
def test_the_card_says_what_is_there(raw, picture):
    digests = MANIFEST["sha256"] | ({RAW: "3" * 64} if raw else {})
    manifest = {**MANIFEST, "sha256": digests}
    tags = {DIGEST: "4" * 64, INPUT: json.dumps(requirements(manifest, {}))}
    text = card("name", manifest, tags, RUN, picture=picture)
    assert ("averages over the training" in text) == (f"| {RAW} | `{'3' * 64}` |" in text) == raw
    assert ("](picture.png)" in text) == picture
