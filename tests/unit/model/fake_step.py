"""A whole training step on a pretended accelerator; run as a program, it prints where each ended or what failed.

Its tensors are fake: they have shapes and a device, no numbers. An operation that mixes them with a CPU tensor fails
as it would on a card. The device is PyTorch's hook for out-of-tree ones, because a PyTorch built without CUDA cannot
differentiate fake CUDA tensors (it has no device guard for them); what matters is only that it is not the CPU.

python fake_step.py '[[MODEL_CONFIG, null], [MODEL_CONFIG, BUFFER_LEFT_ON_THE_CPU], ...]'
"""

import functools
import json
import sys
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from kernels_bank import KernelCodec, sample_gaussian
from pipeline.config import TrainConfig
from pipeline.data.batch import Batch
from pipeline.model import BlindUSRNet
from pipeline.model_config import ModelConfig
from pipeline.training.learner import Learner, WeightAverage
from pipeline.training.objective import TrainingObjective
from pipeline.training.step import take_step


class Backend(_DummyBackendModule):
    """What autocast asks of a device."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


class OneMode(FakeTensorMode):
    """A mode that copies of its tensors (the weight average) share, instead of copying it as well."""

    def __deepcopy__(self, memo):
        return self


class SaysYes(TorchDispatchMode):
    """A fake number, asked for its value ("are all finite?"), is true, or 1."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 1.0
        return func(*args, **(kwargs or {}))


def step_without_brake(optimizer: torch.optim.Optimizer, step: Callable[[], None]) -> None:
    """Take a step of an optimizer that is not fused, as fake tensors need it: it does not know `found_inf`."""
    del optimizer.found_inf  # type: ignore[attr-defined]
    step()


def main(config: ModelConfig, left_behind: str | None) -> str:
    """The devices that weights, gradients and the averaged weights are on after the step."""
    kernels = sample_gaussian(60, 11, rng=np.random.default_rng(0))
    network = BlindUSRNet(config, KernelCodec.fit(kernels, components=6)).train()
    mode = OneMode(allow_non_fake_inputs=False)
    left = dict(network.named_buffers()).get(left_behind)

    def on_card(tensor: torch.Tensor) -> torch.Tensor:
        meta = torch.empty_like(tensor, device="meta")
        return mode.fake_tensor_converter.from_meta_and_device(mode, meta, torch.device("card", 0))

    def drawn(*shape: int) -> torch.Tensor:
        return on_card(torch.empty(shape, device="meta"))

    network._apply(lambda tensor: mode.from_tensor(tensor) if tensor is left else on_card(tensor))
    train, scale = TrainConfig(steps=1), config.scales[-1]
    with mode, SaysYes():
        optimizer = torch.optim.Adam(network.parameters(), lr=train.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1.0)
        optimizer.step = functools.partial(step_without_brake, optimizer, optimizer.step)
        ema = WeightAverage(network, 0.9)
        learner = Learner(TrainingObjective(network, train), network, ema, optimizer, schedule)
        batch = Batch(
            lr=drawn(2, 3, 12, 12),
            hr=drawn(2, 3, 12 * scale, 12 * scale),
            kernel=drawn(2, 11, 11),
            sigma=drawn(2),
            scale=scale,
            keys=("a", "b"),
            replaced=0,
        )
        take_step(learner, batch, train, step=1)
        found = [*network.parameters(), *(p.grad for p in network.parameters()), *ema.parameters()]
        return " ".join(sorted({tensor.device.type for tensor in found}))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # torch's own repr of parameters
    _setup_privateuseone_for_python_backend("card", backend_module=Backend())
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    for settings, left_behind in json.loads(sys.argv[1]):
        try:
            print("ended on", main(ModelConfig.model_validate(settings), left_behind))
        except RuntimeError as error:
            print("failed:", str(error).splitlines()[0])
