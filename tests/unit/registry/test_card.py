"""The model card of a version with raw and averaged weights, and of one without."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from pipeline.model_config import ModelConfig
from pipeline.model_folder import ModelManifest
from pipeline.registry.package import DIGEST, INPUT, RAW, card, requirements

DIGESTS = {"weights.safetensors": "1" * 64, "codec.safetensors": "2" * 64}
RUN = SimpleNamespace(info=SimpleNamespace(run_name="run", run_id="0123"))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("picture", [True, False])
def test_the_card_says_what_is_there(raw, picture):
    digests = DIGESTS | ({RAW: "3" * 64} if raw else {})
    manifest = ModelManifest(kind="blind", config=ModelConfig(), kernel_size=21, sha256=digests)
    tags = {DIGEST: "4" * 64, INPUT: json.dumps(requirements(manifest, {}))}
    text = card("name", manifest, tags, RUN, picture=picture)
    assert ("averages over the training" in text) == (f"| {RAW} | `{'3' * 64}` |" in text) == raw
    assert ("](picture.png)" in text) == picture
