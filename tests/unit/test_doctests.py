"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
ROOMS = ("kernels_bank", "pipeline", "tools")
FILES = [file for room in ROOMS for file in sorted((REPO / room).rglob("*.py")) if ">>>" in file.read_text()]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(REPO).as_posix())
def test_examples(file: Path):
    name = ".".join(file.relative_to(REPO).with_suffix("").parts)
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failed
