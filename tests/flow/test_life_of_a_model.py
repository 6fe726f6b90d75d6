"""A model's whole life: trained, registered, evaluated, promoted, used by its alias elsewhere, replaced, rolled back.

On a server (PostgreSQL and S3 where they are installed); test_quickstart.py goes the same way on SQLite.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from kernels_bank import benchmark_kernels
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.storage import join, sha256_of
from pipeline.config import DataConfig, RunConfig, TrackingConfig, TrainConfig
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig
from pipeline.registry import versions
from pipeline.registry.imports import import_weights
from pipeline.registry.promotion import promote, rollback

pytestmark = pytest.mark.flow

RESTORE = """
import sys
import numpy as np
from pipeline.inference import Restorer

restorer = Restorer.load(sys.argv[1])
print(restorer.digest)
np.save("restored.npy", restorer.restore(np.load("image.npy"), 2).image)
"""


@pytest.mark.usefixtures("cluster")
def test_from_training_to_rollback(
    store: str,
    model_name: str,
    shards: str,
    bank: str,
    photographs: Path,
    model_folder: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    from pipeline.evaluation.evaluate import run_evaluation
    from pipeline.evaluation.settings import EvaluationSettings
    from pipeline.training.fit import fit

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = RunConfig(
        name="life",
        output=str(tmp_path / "runs"),
        # After three steps a kernel net knows nothing: no blur is a fair kernel, the identity a fair prior.
        model=ModelConfig(
            restorer=RestorerConfig(unfoldings=2, widths=(4, 4, 4, 4), residual_blocks=1, global_skip=True),
            kernel=KernelConfig(rounds=0, initial="delta"),
        ),
        data=DataConfig(shards=shards, bank=bank, patch=48),
        train=TrainConfig(steps=3, batch_size=2, workers=1, cpus_per_worker=0.5, log_every=1),
        tracking=TrackingConfig(experiment="life", model_name=model_name),
    )
    trained = fit(config)
    other, _ = import_weights(str(model_folder(1)), model_name, "candidate", store)
    assert (trained.version, other) == (1, 2)

    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(sorted(photographs.iterdir())[0], images)
    protocol = tmp_path / "small.yaml"
    protocol.write_text(yaml.safe_dump({"name": "small", "crop": 64, "sigmas": {2: [0.0]}}))

    kernel = tmp_path / "kernel.npy"
    np.save(kernel, benchmark_kernels()[1])

    def evaluate(version: int) -> dict[str, float]:
        settings = EvaluationSettings(
            model=f"models:/{model_name}/{version}",
            images=str(images),
            kernels=str(kernel),
            protocol=str(protocol),
        )
        return run_evaluation(settings, tmp_path / f"evaluation-{version}")

    headline = evaluate(1)
    assert versions.find(f"{model_name}/1", store).metrics == headline
    promote(store, model_name, 1)
    with pytest.raises(BadRequestError, match="not evaluated for the candidate"):
        promote(store, model_name, 2)
    (key,) = (name for name in headline if name.endswith(".x2.blind"))
    # Random weights are worse than a start from the identity.
    assert evaluate(2)[key] < headline[key] - 1
    with pytest.raises(BadRequestError, match="falls from"):
        promote(store, model_name, 2)
    promote(store, model_name, 2, force="to see it rolled back")

    np.save(tmp_path / "image.npy", np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8))

    def used_elsewhere() -> str:
        """The digest of the weights that a fresh process gets by the alias."""
        command = [sys.executable, "-c", RESTORE, f"models:/{model_name}@champion"]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert np.load(tmp_path / "restored.npy").shape == (48, 60, 3)
        return done.stdout.split()[-1]

    assert used_elsewhere() == sha256_of(model_folder(1) / "weights.safetensors")
    assert rollback(store, model_name).version == 1
    assert used_elsewhere() == sha256_of(join(trained.model, "weights.safetensors"))
