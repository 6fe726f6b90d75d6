"""The checks of this folder on a CUDA card: `make test-cuda`. infra/gpu_acceptance.sh runs the same without pytest."""

from __future__ import annotations

import importlib

import pytest
import torch

from tests.cuda.__main__ import STAGES
from tests.cuda.machine import missing
from tests.cuda.place import Place, SkippedError
from tests.cuda.report import read_stage

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(600)]
# Speed is measured by make bench-cuda.
CHECKS = [(name, check) for name, tier, _ in STAGES if name != "speed" for check in read_stage(name, tier).checks]
TIERS = {name: tier for name, tier, _ in STAGES}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize(("stage", "check"), CHECKS, ids=["/".join(pair) for pair in CHECKS])
def test_on_the_card(stage: str, check: str, record_property):
    if absent := missing(TIERS[stage]):
        pytest.skip(f"needs {', '.join(absent)}")
    place = Place(torch.device("cuda"))
    try:
        facts = getattr(importlib.import_module(f"tests.cuda.{stage}"), f"check_{check}")(place)
    except SkippedError as skipped:
        pytest.skip(str(skipped))
    place.wait()
    for name, value in (facts or {}).items():
        record_property(name, value)
