"""Many photographs from S3 to S3 on an actor pool: the job is killed once and resumed, and bad images are reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels_bank import KernelCodec, sample_gaussian
from kernels_bank.runtime import folders, storage, uris
from pipeline.images.decode import decode_photograph
from pipeline.images.encode import encode_png
from pipeline.inference import Restorer
from pipeline.model import BlindUSRNet
from pipeline.model.weights import save_model
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig
from tests.helpers.fault_proxy import Fault, FaultProxy

pytestmark = pytest.mark.flow
REPO = Path(__file__).parents[2]
COUNT = 8


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An untrained blind x2 model."""
    torch.manual_seed(0)
    codec = KernelCodec.fit(sample_gaussian(200, 11, rng=np.random.default_rng(0)), components=4)
    config = ModelConfig(
        restorer=RestorerConfig(unfoldings=3, widths=(8, 8, 8, 8), residual_blocks=1, global_skip=True),
        kernel=KernelConfig(rounds=1),
    )
    save_model(BlindUSRNet(config, codec), tmp_path / "model", {})
    return tmp_path / "model"


def results(output: str) -> dict[str, bytes]:
    """The restored images that are there, by name."""
    names = [n for n, _ in folders.list_files(output) if n.endswith("-x2.png")]
    return {name: storage.read_bytes(uris.join(output, name)) for name in names}


def test_a_killed_batch_goes_on_and_reports_what_is_broken(s3, model, tmp_path, request):
    """From S3 to S3, and 40% of what is read from there is cut short."""
    source, output = "s3://test/restore/photos", "s3://test/restore/results"
    random = np.random.default_rng(0)
    images = {f"{i}.png": random.integers(0, 256, (120 + 2 * i, 130, 3), np.uint8) for i in range(COUNT)}
    for name, image in images.items():
        storage.write_bytes(f"{source}/{name}", encode_png(image))
    storage.write_bytes(f"{source}/broken.png", encode_png(images["0.png"])[:500])
    command = [sys.executable, "jobs/restore.py", "--model", str(model), "--input", source, "--output", output]
    command += ["--workers", "2", "--sigma", "0.05", "--precision", "float32"]
    proxy = FaultProxy(s3, [Fault("cut", share=0.4, methods="GET", path="restore/")])
    request.addfinalizer(proxy.shut)
    env = os.environ | {"AWS_ENDPOINT_URL": proxy.url}
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command, cwd=REPO, env=env, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 300
        while not (early := results(output)) and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert early, (tmp_path / "log").read_text()
    early = results(output)
    assert len(early) < COUNT, "all was done before the kill; nothing is shown"

    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 1
    assert f"1 of {COUNT + 1} images were not restored: broken.png" in done.stderr
    assert "broken.png: not restored: damaged pixel data" in done.stdout
    # A worker may outlive the driver by the image it had in hand.
    assert len(early) <= done.stdout.count("was finished before") < COUNT
    assert "Traceback" not in done.stdout + done.stderr

    finished = results(output)
    assert set(finished) == {name.replace(".png", "-x2.png") for name in images}
    assert all(finished[name] == content for name, content in early.items())
    restorer = Restorer.load(model, device=torch.device("cpu"))
    for name in sorted(images):
        alone = restorer.restore(images[name], 2, 0.05)
        pooled = decode_photograph(finished[name.replace(".png", "-x2.png")]).pixels
        assert np.abs(pooled.astype(int) - alone.image).max() <= 1
    assert proxy.counts["cut"] > COUNT / 2
    about = json.loads(storage.read_bytes(f"{output}/{name.replace('.png', '-x2.json')}"))
    assert about["residual"] == pytest.approx(alone.residual, rel=1e-3)
    # Not a trace of what the kill cut short.
    assert len(folders.list_files(output)) == 5 * COUNT
