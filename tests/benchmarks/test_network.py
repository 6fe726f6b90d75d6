"""The network against its plain reference: `make bench`; ratios are read within a group.

Times are CPU time of one thread, which other processes on the machine change little. The reference is the published
form: complex FFTs, a division by alpha, PyTorch's default layout, Adam one parameter at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from pipeline.model import BlurOperator, USRNet, data_step
from pipeline.model.compiling import compiler_works
from pipeline.model.fourier import spectrum
from pipeline.model_config import RestorerConfig
from tests.published import FULL, TINY, PublishedUSRNet, published_data_step, random_samples, training_step

pytestmark = pytest.mark.usefixtures("one_thread")
SCALE, PATCH = 2, 96


@pytest.mark.quick
@pytest.mark.benchmark(group="data step, 8 x 3 x 96 x 96, x2, forward", timer=time.process_time, min_rounds=20)
@pytest.mark.parametrize("form", ["published", "residual", "residual-operator-kept"])
def test_data_step(benchmark: Callable, form: str) -> None:
    y, x, kernel, _ = random_samples(8, PATCH, SCALE)
    alpha = torch.full((8, 1, 1, 1), 1e-3)
    operator, y_spectrum = BlurOperator.of(kernel, SCALE, y), spectrum(y)
    match form:
        case "published":
            benchmark(published_data_step, x, y, kernel, alpha, SCALE)
        case "residual":
            benchmark(data_step, x, y, kernel, alpha, SCALE)
        case _:  # what an unfolding costs: the kernel's part is made once for all of them
            benchmark(operator.step, x, y_spectrum, alpha)


VARIANTS = ["reference", "+real-fft", "+channels-last", "+fused-adam (ours)", "+compile", "+bf16", "+bf16+compile"]


def variant(name: str, config: RestorerConfig, count: int) -> Callable[[], None]:
    torch.manual_seed(0)
    samples = random_samples(count, PATCH, SCALE)
    if "compile" in name and not compiler_works("cpu"):
        pytest.skip("no C++ compiler")
    match name:
        case "reference":
            return training_step(PublishedUSRNet(config), samples, SCALE, fused=False)
        case "+real-fft":
            return training_step(PublishedUSRNet(config, real_fft=True), samples, SCALE, fused=False)
        case "+channels-last":
            net = PublishedUSRNet(config, real_fft=True, channels_last=True).to(memory_format=torch.channels_last)
            return training_step(net, samples, SCALE, fused=False)
    compiled = config.changed(compile_prior="compile" in name)
    net = USRNet(compiled).to(memory_format=torch.channels_last)
    return training_step(net, samples, SCALE, fused=True, bf16="bf16" in name)


@pytest.mark.benchmark(group="training step, tiny, batch 8", timer=time.process_time, min_rounds=5, warmup=True)
@pytest.mark.parametrize("name", VARIANTS)
def test_training_step_tiny(benchmark: Callable, name: str) -> None:
    benchmark(variant(name, TINY, 8))


@pytest.mark.benchmark(group="training step, full, batch 1", timer=time.process_time, min_rounds=3, warmup=True)
@pytest.mark.parametrize("name", [name for name in VARIANTS if "compile" not in name])
def test_training_step_full(benchmark: Callable, name: str) -> None:
    benchmark(variant(name, FULL, 1))


@pytest.mark.benchmark(group="8 unfoldings, tiny, batch 4", timer=time.process_time, min_rounds=5, warmup=True)
@pytest.mark.parametrize("activations", ["kept", "computed-again"])
def test_checkpointing(benchmark: Callable, activations: str) -> None:
    update = {"unfoldings": 8, "checkpoint_activations": activations == "computed-again"}
    torch.manual_seed(0)
    benchmark(training_step(USRNet(TINY.changed(**update)), random_samples(4, PATCH, SCALE), SCALE, fused=True))


@pytest.mark.quick
@pytest.mark.benchmark(
    group="inference, 336 x 224 result, x2, tiny", timer=time.process_time, min_rounds=3, warmup=True
)
@pytest.mark.parametrize("form", ["reference", "ours"])
def test_inference(benchmark: Callable, form: str) -> None:
    torch.manual_seed(0)
    net = (PublishedUSRNet(TINY) if form == "reference" else USRNet(TINY)).eval()
    lr, kernel, sigma = torch.rand(1, 3, 112, 168), random_samples(1, PATCH, SCALE)[2], torch.zeros(1)
    with torch.inference_mode():
        benchmark(net, lr, kernel, SCALE, sigma)
