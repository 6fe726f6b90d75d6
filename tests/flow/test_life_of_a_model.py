"""A model's whole life: trained, registered, evaluated, promoted, used by its alias elsewhere, replaced, rolled back.

Trained on a server (PostgreSQL and S3 where they are installed), imported to SQLite; test_quickstart.py and
test_train.py train there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml

from kernels_bank import benchmark_kernels
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.storage import sha256_of
from kernels_bank.runtime.uris import join
from pipeline.config import DataConfig, RunConfig, TrackingConfig, TrainConfig
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig
from pipeline.registry import versions
from pipeline.registry.imports import import_weights
from pipeline.registry.promotion import promote, rollback

if TYPE_CHECKING:
    from pipeline.training.fit import Fitted

pytestmark = pytest.mark.flow
NAME = "life-x2"

RESTORE = """
import sys
import numpy as np
from pipeline.inference import Restorer

restorer = Restorer.load(sys.argv[1])
print(restorer.digest)
np.save("restored.npy", restorer.restore(np.load("image.npy"), 2).image)
"""


@pytest.fixture(scope="module")
def trained(
    tracking_server: str, cluster: None, shards: str, bank: str, tmp_path_factory: pytest.TempPathFactory
) -> Fitted:
    """A run that is recorded and registered on the server."""
    from pipeline.training.fit import fit

    config = RunConfig(
        name="life",
        output=str(tmp_path_factory.mktemp("life") / "runs"),
        # After three steps a kernel net knows nothing: no blur is a fair kernel, the identity a fair prior.
        model=ModelConfig(
            restorer=RestorerConfig(unfoldings=2, widths=(4, 4, 4, 4), residual_blocks=1, global_skip=True),
            kernel=KernelConfig(rounds=0, initial="delta"),
        ),
        data=DataConfig(shards=shards, bank=bank, patch=48),
        train=TrainConfig(steps=3, batch_size=2, workers=1, cpus_per_worker=0.5, log_every=1),
        tracking=TrackingConfig(experiment="life", model_name=NAME),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking_server)
        return fit(config)


def test_from_training_to_rollback(
    trained: Fitted,
    store: str,
    photographs: Path,
    model_folder: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    from pipeline.evaluation.evaluate import run_evaluation
    from pipeline.evaluation.settings import EvaluationSettings

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    version = trained.version
    if store != trained.run.tracking_uri:  # the same model, as it comes to another registry
        version, _ = import_weights(trained.model, NAME, "candidate", store)
    other, _ = import_weights(str(model_folder(1)), NAME, "candidate", store)
    assert (version, other) == (1, 2)

    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(sorted(photographs.iterdir())[0], images)
    protocol = tmp_path / "small.yaml"
    protocol.write_text(yaml.safe_dump({"name": "small", "crop": 64, "sigmas": {2: [0.0]}}))

    kernel = tmp_path / "kernel.npy"
    np.save(kernel, benchmark_kernels()[1])

    def evaluate(version: int) -> dict[str, float]:
        settings = EvaluationSettings(
            model=f"models:/{NAME}/{version}",
            images=str(images),
            kernels=str(kernel),
            protocol=str(protocol),
        )
        return run_evaluation(settings, tmp_path / f"evaluation-{version}")

    headline = evaluate(1)
    assert versions.find(f"{NAME}/1", store).metrics == headline
    promote(store, NAME, 1)
    with pytest.raises(BadRequestError, match="not evaluated for the candidate"):
        promote(store, NAME, 2)
    (key,) = (name for name in headline if name.endswith(".x2.blind"))
    # Random weights are worse than a start from the identity.
    assert evaluate(2)[key] < headline[key] - 1
    with pytest.raises(BadRequestError, match="falls from"):
        promote(store, NAME, 2)
    promote(store, NAME, 2, force="to see it rolled back")

    np.save(tmp_path / "image.npy", np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8))

    def used_elsewhere() -> str:
        """The digest of the weights that a fresh process gets by the alias."""
        command = [sys.executable, "-c", RESTORE, f"models:/{NAME}@champion"]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert np.load(tmp_path / "restored.npy").shape == (48, 60, 3)
        return done.stdout.split()[-1]

    assert used_elsewhere() == sha256_of(model_folder(1) / "weights.safetensors")
    assert rollback(store, NAME).version == 1
    assert used_elsewhere() == sha256_of(join(trained.model, "weights.safetensors"))
