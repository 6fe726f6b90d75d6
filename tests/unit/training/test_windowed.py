"""Training windows of the initial kernel: small pictures too, the same in every run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.config import CameraConfig, DataConfig, LossConfig, RunConfig, TrainConfig
from pipeline.data.batch import Batch
from pipeline.model_config import ModelConfig
from pipeline.training.step import windowed

LR = torch.arange(2 * 3 * 50 * 70, dtype=torch.float32).reshape(2, 3, 50, 70)
BATCH = Batch(lr=LR, hr=LR, kernel=LR, sigma=torch.zeros(2), scale=2, keys=("a", "b"), replaced=0)


def test_a_window_is_a_part_of_the_images_on_the_grid_of_jpeg():
    sides = []
    for step in range(300):
        cut = windowed(BATCH, 20, step).lr
        top, left = divmod(int(cut[0, 0, 0, 0]), 70)
        assert torch.equal(cut, LR[..., top : top + cut.shape[-2], left : left + cut.shape[-1]])
        assert top % 8 == left % 8 == 0
        sides.append(cut.shape[-2:])
    rows, columns = np.array(sides).T
    assert (rows.min(), rows.max()) == (20, 50)
    assert 20 <= columns.min() < 24
    assert 66 < columns.max() <= 70


def test_the_same_step_cuts_the_same_window():
    assert torch.equal(windowed(BATCH, 20, 7).lr, windowed(BATCH, 20, 7).lr)
    assert len({windowed(BATCH, 20, step).lr.shape for step in range(20)}) > 5


def test_images_smaller_than_the_smallest_window_stay_whole():
    assert windowed(BATCH, 99, 0).lr.shape == LR.shape


def config(learn: str, code: float, **camera: object) -> RunConfig:
    loss = LossConfig(code=code, kernel=float(learn != "restorer"))
    return RunConfig(
        name="t",
        model=ModelConfig(),
        data=DataConfig(shards="s", bank="b", camera=CameraConfig.model_validate(camera)),
        train=TrainConfig.model_validate({"steps": 1, "learn": learn, "loss": loss}),
    )


@pytest.mark.parametrize(
    ("learn", "code", "camera", "message"),
    [
        ("spectral", 0.0, {"centred": 0.5}, "centred 0.5 with train.learn 'spectral'"),
        ("all", 0.1, {"centred": 0.0, "reductions": {"area": 1.0}}, "the code is that of a blur"),
        ("restorer", 0.1, {"reductions": {"area": 0.5}}, "add up to 0.5, not 1"),
        ("restorer", 0.1, {"jpeg_quality": [90, 80]}, "the lower bound comes first"),
    ],
)
def test_cameras_that_cannot_be_learned_from_are_refused(learn, code, camera, message):
    with pytest.raises(ValidationError, match=message):
        config(learn, code, **camera)


@pytest.mark.parametrize(
    ("learn", "code", "camera"),
    [
        ("restorer", 0.1, {"centred": 0.5, "reductions": {"area": 0.5, "bicubic": 0.5}}),
        ("spectral", 0.0, {"centred": 0.0, "reductions": {"area": 0.5, "bicubic": 0.5}}),
        ("all", 0.1, {"centred": 0.0, "jpeg": 0.5}),
    ],
)
def test_cameras_that_can_be_learned_from(learn, code, camera):
    taken = config(learn, code, **camera).data.camera
    assert taken is not None
    assert taken.model_dump(include=set(camera)) == camera
