"""A checkpoint continues bit-equal, keeps its kernel code, and is refused where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kernels_bank import KernelCodec, sample_gaussian
from kernels_bank.runtime.errors import ArtefactError
from pipeline.data.plan import Stage
from pipeline.model.weights import RAW, load_model
from pipeline.training import checkpoint
from pipeline.training.step import train_step
from tests.unit.training.small_learner import CONFIG, DIGESTS, TRAIN, make_learner, same, weights


def test_a_checkpoint_continues_bit_equal(codec, batch, tmp_path: Path):
    undisturbed, first, second = make_learner(codec), make_learner(codec), make_learner(codec)
    for step in range(6):
        train_step(undisturbed, batch, TRAIN, step)
    for step in range(3):
        train_step(first, batch, TRAIN, step)
    state = checkpoint.State(step=3, stages=(Stage(workers=1, consumed=12),), score=1.5, config=CONFIG, digests=DIGESTS)
    checkpoint.save(tmp_path, state, first.network, first.ema, first.optimizer, first.schedule)
    assert checkpoint.load_state(tmp_path, DIGESTS) == state
    checkpoint.load_into(tmp_path, second.network, second.ema, second.optimizer, second.schedule)
    for step in range(3, 6):
        train_step(second, batch, TRAIN, step)
    assert same(weights(second), weights(undisturbed))
    assert same(second.ema.module.state_dict(), undisturbed.ema.module.state_dict())


def test_a_learning_rate_changed_between_two_sittings_counts(codec, batch, tmp_path: Path):
    before = make_learner(codec)
    for step in range(3):
        train_step(before, batch, TRAIN, step)
    state = checkpoint.State(step=3, stages=(), score=0.0, config=CONFIG, digests=DIGESTS)
    checkpoint.save(tmp_path, state, before.network, before.ema, before.optimizer, before.schedule)
    after = make_learner(codec, TRAIN.model_copy(update={"learning_rate": 1e-4}))
    checkpoint.load_into(tmp_path, after.network, after.ema, after.optimizer, after.schedule)
    factor = 1 / (1 + 3 / 100)
    assert [group["lr"] for group in after.optimizer.param_groups] == pytest.approx([1e-4 * factor, 2e-3 * factor])
    train_step(after, batch, TRAIN, 4)
    assert after.schedule.get_last_lr() == pytest.approx([1e-4 / 1.04, 2e-3 / 1.04])


def test_a_checkpoint_keeps_its_code_and_refuses_kernels_of_another_size(codec, tmp_path: Path):
    learner = make_learner(codec)
    state = checkpoint.State(step=1, stages=(), score=0.0, config=CONFIG, digests=DIGESTS)
    checkpoint.save(tmp_path, state, learner.network, learner.ema, learner.optimizer, learner.schedule)
    other = KernelCodec.fit(sample_gaussian(400, 11, rng=np.random.default_rng(9)), components=8)
    assert checkpoint.codec_of(tmp_path, other).digest == codec.digest != other.digest
    larger = KernelCodec.fit(sample_gaussian(400, 13, rng=np.random.default_rng(0)), components=8)
    with pytest.raises(ArtefactError, match="11 pixels wide, those of the bank 13"):
        checkpoint.codec_of(tmp_path, larger)


def test_the_exported_model_holds_the_averaged_weights(codec, batch, tmp_path: Path):
    learner = make_learner(codec)
    for step in range(3):
        train_step(learner, batch, TRAIN, step)
    (tmp_path / "c").mkdir()
    state = checkpoint.State(step=3, stages=(), score=0.0, config=CONFIG, digests=DIGESTS)
    checkpoint.save(tmp_path / "c", state, learner.network, learner.ema, learner.optimizer, learner.schedule)
    checkpoint.export(tmp_path / "c", tmp_path / "model")
    exported = load_model(tmp_path / "model").state_dict()
    assert same(exported, learner.ema.module.state_dict())
    assert not same(exported, weights(learner))
    assert same(load_model(tmp_path / "model", RAW).state_dict(), weights(learner))
    assert RAW in json.loads((tmp_path / "model" / "model.json").read_text())["sha256"]


def test_other_data_than_the_checkpoint_was_made_from_is_refused(codec, tmp_path: Path):
    learner = make_learner(codec)
    state = checkpoint.State(step=1, stages=(), score=0.0, config=CONFIG, digests=DIGESTS)
    checkpoint.save(tmp_path, state, learner.network, learner.ema, learner.optimizer, learner.schedule)
    with pytest.raises(ArtefactError, match="another bank"):
        checkpoint.load_state(tmp_path, DIGESTS | {"bank": "3"})
