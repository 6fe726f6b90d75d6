"""What a run's logger says when neither the store nor the run's folder takes anything."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kernels_bank.runtime.output import own_output
from pipeline.tracking import logger
from pipeline.tracking.store import RunRef


def test_what_is_neither_sent_nor_kept_is_said_once_and_called_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def away(uri: str) -> None:
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(logger, "client", away)
    home, said = tmp_path / "small", list[str]()
    with own_output(str(home), "training run"):
        shutil.rmtree(home)
        with logger.RunLogger(RunRef("r1", "http://127.0.0.1:9"), home=str(home), tell=said.append) as log:
            for step in range(1, 4):
                log.metrics(step, {"loss": 0.5})
                log.flush()
            log.close(limit_s=2)
    assert len(said) == 2, said
    assert "would lose" in said[0]
    assert f"3 points and files of run r1 are lost: {home}/unsent/r1 cannot be written to: " in said[1]
    assert not home.exists()
