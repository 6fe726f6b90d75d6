"""The plan of a training step against the step itself."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kernels_bank import KernelCodec, sample_gaussian
from kernels_bank.runtime.errors import BadRequestError
from pipeline.config import LossConfig, TrainConfig
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig
from pipeline.training.planning.cost import Cost, fake_step, training_cost
from pipeline.training.planning.table import Card, plan_table

TRAIN = TrainConfig(steps=1)
SMALL = ModelConfig(
    scales=(2, 3), restorer=RestorerConfig(unfoldings=4, global_skip=True), kernel=KernelConfig(rounds=1)
)


@pytest.fixture(scope="module")
def codec() -> KernelCodec:
    return KernelCodec.fit(sample_gaussian(60, 11, rng=np.random.default_rng(0)), components=6)


def measured_peak(config: ModelConfig, batch: int, patch: int, scale: int) -> int:
    program = Path(__file__).with_name("measured_step.py")
    # Every block of 64 KiB and more is mapped by itself and goes back at once, so resident memory is what is alive.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, str(program), config.model_dump_json(), str(batch), str(patch), str(scale)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of resident memory from Linux")
@pytest.mark.parametrize(("checkpointed", "schedule", "scale"), [(False, "interleaved", 2), (True, "rounds", 3)])
def test_the_planned_peak_is_the_measured_one(checkpointed, schedule, scale, codec):
    """Within 10%: the growth of resident memory during a real step against what is alive in a fake one."""
    config = SMALL.with_restorer(checkpoint_activations=checkpointed)
    config = config.model_copy(update={"kernel": KernelConfig(rounds=1, schedule=schedule)})
    step = fake_step(config, TRAIN, codec, 6, 96, scale)
    before = 4 * 4 * step.parameters  # weights, two moments and the average; the program has the weights only
    assert measured_peak(config, 6, 96, scale) == pytest.approx(step.peak_bytes - before, rel=0.1)


def test_memory_grows_linearly_with_the_batch(codec):
    cost = training_cost(SMALL, TRAIN, codec, 48, 2)
    for batch in (4, 32):
        assert cost.peak_bytes(batch) == pytest.approx(
            fake_step(SMALL, TRAIN, codec, batch, 48, 2).peak_bytes, rel=0.02
        )


def test_operations_are_those_of_the_convolutions_written_out(codec):
    """One prior counted by hand: 2 x outputs x inputs x 9 (or 4) an output pixel, on every level."""
    one, two = (
        fake_step(
            ModelConfig(restorer=RestorerConfig(unfoldings=n), kernel=KernelConfig(rounds=1, schedule="rounds")),
            TRAIN,
            codec,
            1,
            96,
            2,
        )
        for n in (2, 3)
    )
    a, b, c, d = (96**2, 48**2, 24**2, 12**2)
    blocks = 2 * 9 * 2 * 2 * (2 * a * 16**2 + 2 * b * 32**2 + 2 * c * 64**2 + d * 64**2)
    between = 2 * 4 * 2 * (b * 16 * 32 + c * 32 * 64 + d * 64 * 64)
    prior = blocks + between + 2 * 9 * a * (4 * 16 + 16 * 3)
    # Two rounds run it once more each; what else differs is two data steps, well under a hundredth of it.
    assert two.forward_flops - one.forward_flops == pytest.approx(2 * prior, rel=0.02)
    assert two.forward_flops - one.forward_flops > 2 * prior


def test_checkpointing_computes_the_forward_once_more_for_a_third_of_the_memory(codec):
    kept, again = (
        fake_step(ModelConfig(restorer=RestorerConfig(unfoldings=8, checkpoint_activations=on)), TRAIN, codec, 8, 96, 2)
        for on in (False, True)
    )
    assert again.peak_bytes < kept.peak_bytes / 3
    assert again.forward_flops == kept.forward_flops
    assert again.backward_flops - kept.backward_flops <= kept.forward_flops


def test_the_largest_batch_fits_and_one_more_does_not():
    cost = Cost(parameters=1, forward_flops=1e9, backward_flops=2e9, fixed_bytes=100, sample_bytes=7)
    assert cost.largest_batch(121) == 3
    assert cost.peak_bytes(3) <= 121 < cost.peak_bytes(4)
    assert cost.largest_batch(50) == 0
    assert cost.samples_per_second(6e12) == 2000


@pytest.mark.parametrize(
    ("size", "components", "said"),
    [
        (4, 10, "--kernel-size 4, --components 10: size 4 is even; a centre pixel needs an odd side"),
        (101, 10, "--kernel-size 101, --components 10: Input should be less than or equal to 99"),
        (3, 10, "--kernel-size 3, --components 10: components 10: a 3 x 3 kernel has 9 pixels"),
    ],
)
def test_kernels_that_no_bank_has_are_not_planned(size: int, components: int, said: str):
    with pytest.raises(BadRequestError) as refused:
        plan_table([], Card(80, 40), kernel_size=size, components=components)
    assert str(refused.value) == said


def test_a_net_that_knows_reductions_is_planned_twice(codec):
    """Every run is planned at two batches, and the configs one after the other in one process."""
    knowing = ModelConfig(kernel=KernelConfig(initial="spectral", reductions=True, rounds=0))
    train = TrainConfig(steps=1, learn="spectral", loss=LossConfig(code=0, inverse=1))
    one, two = (fake_step(knowing, train, codec, 1, 96, 2) for _ in range(2))
    assert one == two
