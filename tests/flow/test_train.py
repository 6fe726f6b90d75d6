"""Training on real Ray Train workers: a whole run and its records; a fresh run in its place that fails."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from safetensors.torch import load_file

from kernels_bank.runtime.errors import BadRequestError, JobFailedError
from pipeline.config import RunConfig, TrackingConfig
from pipeline.images.decode import decode_image
from tests.flow.training_runs import final_weights, same, small_run

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("cluster")]


@pytest.fixture
def config(shards: str, bank: str, empty_store: Path, tmp_path: Path) -> RunConfig:
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")
    return small_run(shards, bank, str(tmp_path / "runs"), steps=12)


def but(config: RunConfig, **train: object) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


def read_if_there(file: Path) -> str:
    """Its text; nothing when it was deleted meanwhile."""
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


def test_a_run_ends_with_a_registered_model_and_is_recorded_whole(
    undisturbed: Path, shards: str, bank: str, tmp_path: Path
):
    import mlflow

    from pipeline.registry import fetch
    from pipeline.training.fit import data_digests, fit

    config = small_run(shards, bank, str(undisturbed))
    fitted = fit(config)
    assert fitted.reused
    # Ray would leave a copy of a checkpoint of each run. The runs of other processes have theirs meanwhile.
    ours = [*undisturbed.glob("small/checkpoints/step-*/state.json")]
    copies = [*Path(tempfile.gettempdir()).glob("checkpoint_tmp_*/state.json")]
    assert ours
    assert [state for state in ours + copies if str(undisturbed) in read_if_there(state)] == ours
    folder = fetch.download("models:/small-x2@candidate", tracking_uri=fitted.run.tracking_uri)
    assert same(load_file(folder / "weights.safetensors"), final_weights(config.output))
    client = mlflow.MlflowClient(tracking_uri=fitted.run.tracking_uri)
    run = client.get_run(fitted.run.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.steps"] == "24"
    assert "code.revision" in run.data.tags or "code.version" in run.data.tags
    for name in ("loss", "loss_image", "loss_code", "psnr", "grad_norm", "learning_rate", "images_per_s", "data_wait"):
        assert [m.step for m in client.get_metric_history(fitted.run.run_id, name)] == list(range(2, 25, 2)), name
    assert 0.1 < run.data.metrics["memory_gib"] < 64
    assert 0 < run.data.metrics["system/system_memory_usage_percentage"] <= 100
    inputs = {item.dataset.name: {t.key: t.value for t in item.tags}["sha256"] for item in run.inputs.dataset_inputs}
    assert inputs == data_digests(config)
    assert "kernels/preview.png" in {file.path for file in client.list_artifacts(fitted.run.run_id, "kernels")}
    pictures = [f.path for f in client.list_artifacts(fitted.run.run_id, "images") if f.path.endswith(".png")]
    assert len(pictures) == 4
    picture = decode_image(Path(client.download_artifacts(fitted.run.run_id, pictures[0], str(tmp_path))).read_bytes())
    # LR, bicubic, the two rounds' images, HR; true kernel and the two rounds' kernels: 8 columns of twice the patch.
    assert picture.shape == (4 * (96 + 4) - 4, 8 * (96 + 4) - 4, 3)


def test_a_run_that_starts_afresh_and_breaks_says_where_and_goes_on_when_told(
    config: RunConfig, undisturbed: Path, capfd: pytest.CaptureFixture
):
    """In the place of a finished run. Far too high a learning rate: the step after its first one is not finite."""
    import mlflow

    from pipeline.registry import fetch
    from pipeline.training.fit import fit

    config = but(config, workers=1)
    shutil.copytree(undisturbed / "small", Path(config.output) / "small")
    before = json.loads((undisturbed / "small" / "run.json").read_text())
    first = fit(but(config, steps=4), resume="never")
    assert not first.reused
    assert first.run.run_id != before["run_id"]
    kept = Path(config.output) / "small.1" / "model" / "weights.safetensors"
    assert same(load_file(kept), final_weights(undisturbed))
    assert not same(final_weights(config.output), final_weights(undisturbed))
    broken = but(config, learning_rate=1e30)
    with pytest.raises(BadRequestError, match=r"learning_rate: 0.0002 -> 1e\+30\); .*--resume changed"):
        fit(broken)
    home = Path(config.output) / "small"
    with pytest.raises(JobFailedError) as caught:
        fit(broken, resume="changed")
    message = str(caught.value)
    assert message.startswith("run 'small' failed: step 6: loss nan") or "step 6: loss inf" in message
    assert " in worker 0 on samples " in message
    assert f"the last good checkpoint is {home}/checkpoints/step-00000004; go on from it with --resume" in message
    assert "resumes from its last checkpoint" not in capfd.readouterr().err  # no worker was started again for it
    client = mlflow.MlflowClient(tracking_uri=first.run.tracking_uri)
    assert client.get_run(first.run.run_id).info.status == "FAILED"

    mended = fit(config, resume="changed")
    assert mended.run.run_id == first.run.run_id
    assert client.get_run(first.run.run_id).info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(first.run.run_id, "loss")] == [2, 4, 6, 8, 10, 12]

    # Finished, it is registered under the name that it is now given, and says so from then on.
    named = config.model_copy(update={"tracking": TrackingConfig(model_name="other-x2", alias="second")})
    for wanted in (named, named, config.model_copy(update={"tracking": TrackingConfig()})):
        renamed = fit(wanted)
        assert (renamed.reused, renamed.version, renamed.tracking) == (True, 1, named.tracking)
    assert client.get_model_version_by_alias("other-x2", "second").run_id == first.run.run_id
    folder = fetch.download("models:/other-x2@second", tracking_uri=first.run.tracking_uri)
    assert same(load_file(folder / "weights.safetensors"), final_weights(config.output))
    assert len(client.search_model_versions("name = 'other-x2'")) == 1
