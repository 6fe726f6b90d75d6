"""A checkpoint or model folder of which anything was changed is refused, and the checkpoint before is taken."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kernels_bank import KernelCodec, sample_gaussian
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.inference import Restorer
from pipeline.model import BlindUSRNet
from pipeline.model.weights import load_model
from pipeline.model_config import EstimatorConfig, KernelConfig, ModelConfig, RestorerConfig
from pipeline.training import checkpoint
from pipeline.training.commit import COPY, SNAPSHOT, usable_step
from pipeline.training.fit import initial_weights, say_changes

MODEL = ModelConfig(
    restorer=RestorerConfig(unfoldings=2, widths=(4, 4, 4, 4), residual_blocks=1),
    kernel=KernelConfig(rounds=1, estimator=EstimatorConfig(channels=4)),
)
CONFIG = RunConfig(name="t", model=MODEL, data=DataConfig(shards="s", bank="b", patch=48), train=TrainConfig(steps=8))
FILES = [*checkpoint.FILES, checkpoint.LIST]


def flip(file: Path, place: float = 0.6) -> None:
    data = bytearray(file.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x40
    file.write_bytes(data)


def flip_in_the_header(file: Path) -> None:
    flip(file, 0.02)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def empty(file: Path) -> None:
    file.write_bytes(b"")


DAMAGE = [flip, flip_in_the_header, cut, empty, Path.unlink]


def write(folder: Path, step: int) -> Path:
    torch.manual_seed(step)
    codec = KernelCodec.fit(sample_gaussian(50, 11, rng=np.random.default_rng(0)), components=4)
    network = BlindUSRNet(MODEL, codec)
    ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.Adam(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1.0)
    state = checkpoint.State(step=step, stages=(), score=1.0, config=CONFIG, digests={"bank": "b"})
    folder.mkdir(parents=True)
    checkpoint.save(folder, state, network, ema, optimizer, schedule)
    return folder


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (4, 8):
        write(folder / f"step-{step:08d}", step)
    results = [{"version": 0, "checkpoint_dir_name": f"step-{step:08d}", "metrics": {"step": step}} for step in (4, 8)]
    snapshot = {
        "checkpoint_results": results,
        "checkpoint_report_indices": [0, 1],
        "latest_checkpoint_result": results[1],
    }
    (folder / SNAPSHOT).write_text(json.dumps(snapshot))
    return folder


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "checkpoints")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_whatever_is_damaged_the_checkpoint_before_is_taken(
    run: Path, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
):
    damage(run / "step-00000008" / name)
    with pytest.raises(ArtefactError):
        checkpoint.check(run / "step-00000008")
    before = sorted(run.rglob("*"))
    assert usable_step(str(run), mend=False) == 4  # as `train --check` looks
    assert sorted(run.rglob("*")) == before
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("damaged checkpoint: ")
    assert usable_step(str(run)) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("damaged checkpoint: ")
    assert line.endswith("the run resumes from step-00000004")
    assert (run / "step-00000008.damaged").is_dir()
    for snapshot in (json.loads((run / file).read_text()) for file in (SNAPSHOT, COPY)):
        assert [r["checkpoint_dir_name"] for r in snapshot["checkpoint_results"]] == ["step-00000004"]
        assert snapshot["latest_checkpoint_result"]["checkpoint_dir_name"] == "step-00000004"
        assert snapshot["checkpoint_report_indices"] == [0]
    assert usable_step(str(run)) == 4  # and nothing more to say
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_checkpoint_is_told(run: Path, name: str):
    if (run / "step-00000004" / name).read_bytes() == (run / "step-00000008" / name).read_bytes():
        pytest.skip("equal in both")
    shutil.copy(run / "step-00000004" / name, run / "step-00000008" / name)
    assert usable_step(str(run)) == 4


def test_a_whole_checkpoint_under_the_name_of_another_is_told(run: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(run / "step-00000008")
    shutil.copytree(run / "step-00000004", run / "step-00000008")
    assert usable_step(str(run)) == 4
    assert "holds the checkpoint of step 4" in capsys.readouterr().err


def test_a_checkpoint_that_is_gone_is_damaged_too(run: Path):
    shutil.rmtree(run / "step-00000008")
    assert usable_step(str(run)) == 4


def test_an_older_one_that_is_gone_is_dropped_because_ray_would_refuse_the_snapshot(run: Path):
    shutil.rmtree(run / "step-00000004")
    assert usable_step(str(run)) == 8
    listed = json.loads((run / SNAPSHOT).read_text())["checkpoint_results"]
    assert [r["checkpoint_dir_name"] for r in listed] == ["step-00000008"]


def test_good_checkpoints_are_left_alone(run: Path, capsys: pytest.CaptureFixture[str]):
    before = (run / SNAPSHOT).read_bytes()
    assert usable_step(str(run)) == 8
    assert (run / SNAPSHOT).read_bytes() == before
    assert capsys.readouterr().err == ""


def test_without_a_good_one_the_error_says_what_to_do_and_nothing_is_moved(run: Path):
    for step in (4, 8):
        flip(run / f"step-{step:08d}" / checkpoint.OPTIMIZER)
    with pytest.raises(BadRequestError, match=r"no checkpoint of this run is good: .*8/opt.*4/opt.*--resume never$"):
        usable_step(str(run), mend=False)
    with pytest.raises(BadRequestError, match=r"no checkpoint of this run is good: "):
        usable_step(str(run))
    assert sorted(path.name for path in run.glob("step-*")) == ["step-00000004", "step-00000008"]


@pytest.mark.parametrize("name", ["../../etc", "/etc", "step-00000008/..", "step-8", ""])
def test_a_snapshot_names_nothing_but_checkpoints(run: Path, name: str):
    snapshot = json.loads((run / SNAPSHOT).read_text())
    snapshot["checkpoint_results"][0]["checkpoint_dir_name"] = name
    (run / SNAPSHOT).write_text(json.dumps(snapshot))
    with pytest.raises(ArtefactError, match="no checkpoint of ours"):
        usable_step(str(run))


def test_a_checkpoint_of_an_earlier_version_has_no_list_and_is_still_read(run: Path):
    folder = run / "step-00000008"
    (folder / checkpoint.LIST).unlink()
    state, model = json.loads((folder / "state.json").read_text()), json.loads((folder / "model.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"schema_version": 1}))
    del model["sha256"]["ema.safetensors"], model["digest"]
    (folder / "model.json").write_text(json.dumps(model))
    assert usable_step(str(run)) == 8
    averaged = load_model(folder, "ema.safetensors").state_dict()
    assert all(torch.equal(averaged[k], v) for k, v in Restorer.load(folder).network.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weights", "averages", "optimizer"])
def test_a_checkpoint_that_is_not_finite_is_never_written(run: Path, tmp_path: Path, where: str, value: float):
    network = load_model(run / "step-00000008")
    assert isinstance(network, BlindUSRNet)
    ema, optimizer = AveragedModel(network), torch.optim.Adam(network.parameters(), lr=value if where == "lr" else 1.0)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with torch.no_grad():
        match where:
            case "weights":
                next(network.parameters()).view(-1)[3] = value
            case "averages":
                next(ema.module.parameters()).view(-1)[3] = value
            case "optimizer":
                next(iter(optimizer.state.values()))["exp_avg"].view(-1)[3] = value
    state = checkpoint.State(step=9, stages=(), score=1.0, config=CONFIG, digests={})
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1.0)
    with pytest.raises(ArtefactError, match="is not finite"):
        checkpoint.save(tmp_path, state, network, ema, optimizer, schedule)
    assert not (tmp_path / checkpoint.LIST).exists()


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["weights.safetensors", "ema.safetensors", "codec.safetensors", "model.json"])
def test_what_is_used_of_a_checkpoint_is_checked_too(run: Path, name: str, damage: Callable[[Path], None]):
    damage(run / "step-00000008" / name)
    with pytest.raises(ArtefactError):
        Restorer.load(run / "step-00000008")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["weights.safetensors", "weights-raw.safetensors", "codec.safetensors", "model.json"])
def test_every_file_of_a_model_folder_is_checked(
    written: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
):
    checkpoint.export(written / "step-00000008", tmp_path / "model")
    damage(tmp_path / "model" / name)
    with pytest.raises(ArtefactError):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("name", FILES)
def test_no_bit_of_a_small_file_goes_unseen(run: Path, name: str):
    """Of the larger ones a hundred, spread over the file."""
    file = run / "step-00000008" / name
    good = file.read_bytes()
    for place in range(0, len(good), max(1, len(good) // 100)):
        for bit in (1, 32) if len(good) < 5000 else (1 << place % 8,):
            file.write_bytes(good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :])
            with contextlib.suppress(ArtefactError):
                checkpoint.check(run / "step-00000008")
                assert json.loads(file.read_bytes()) == json.loads(good), f"byte {place}"  # a blank for a blank


def test_a_bit_in_the_configuration_of_a_model_is_seen(written: Path, tmp_path: Path):
    checkpoint.export(written / "step-00000008", tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    good = file.read_text()
    for before, after in (('"steps": 0', '"steps": 1'), ('"bank": "b"', '"bank": "c"')):
        assert before in good
        file.write_text(good.replace(before, after))
        with pytest.raises(ArtefactError, match="not that of its digest"):
            load_model(tmp_path / "model")


def test_fewer_steps_than_the_checkpoint_has_are_refused(tmp_path: Path):
    with pytest.raises(BadRequestError, match=r"checkpoint of step 9, beyond train.steps 8; give 9 or more steps"):
        initial_weights(CONFIG, 9, str(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"steps": 16},
            "train.steps 8 -> 16: at step 8 the cosine's learning rate changes from 5% to 52% of its peak\n",
        ),
        (
            {"steps": 16, "schedule": "halving", "halve_at": (9,)},
            (
                "train.steps 8 -> 16, train.schedule cosine -> halving, train.halve_at () -> (9,): at step 8 the "
                "learning rate changes from 5% to 100% of its peak\n"
            ),
        ),
        (
            {"steps": 100, "warmup_steps": 90},
            (
                "train.steps 8 -> 100, train.warmup_steps 0 -> 90: at step 8 the cosine's learning rate changes "
                "from 5% to 10% of its peak\n"
            ),
        ),
        (
            {"start_from": "models:/other/1"},
            "train.start_from models:/other/1: without effect, the run resumes from its checkpoint of step 8\n",
        ),
        ({"learning_rate": 1e-5}, ""),  # its share of the peak is the same, and the peak was asked for
        ({"log_every": 3}, ""),
    ],
)
def test_what_jumps_or_has_no_effect_where_a_run_resumes_is_told(
    change: dict, said: str, capsys: pytest.CaptureFixture[str]
):
    record = {"config": CONFIG.model_dump(mode="json")}
    say_changes(CONFIG.model_copy(update={"train": TrainConfig.model_validate({"steps": 8} | change)}), record, 8)
    assert capsys.readouterr().err == said
    say_changes(CONFIG, record, 8)
    say_changes(CONFIG, {}, 8)
    assert capsys.readouterr().err == ""
