"""Training steps on a pretended accelerator; run as a program, it prints as JSON what a card would have been asked.

The device is PyTorch's hook for out-of-tree ones, and the tensors are fake, as in fake_step.py. Counted are the times
that a number is asked for (the device is waited for), copies from and to the CPU, tensors of float64, inputs of FFTs
that are not contiguous, and operations that CUDA refuses where deterministic algorithms are asked for.

python counting_step.py MODEL_CONFIG TRAIN_CONFIG
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter

import numpy as np
import torch
from fake_step import Backend, OneMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from kernels_bank import KernelCodec, sample_gaussian
from pipeline.config import TrainConfig
from pipeline.data.batch import Batch
from pipeline.model import BlindUSRNet
from pipeline.model_config import ModelConfig
from pipeline.training.learner import Learner, WeightAverage
from pipeline.training.ledger import Ledger
from pipeline.training.objective import TrainingObjective
from pipeline.training.step import take_step

STEPS = 3
# From the list of torch.use_deterministic_algorithms: what of it raises on CUDA, as far as a network may call it.
REFUSED = {
    "cumsum",
    "histc",
    "median",
    "kthvalue",
    "put_",
    "grid_sampler_2d_backward",
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "reflection_pad2d_backward",
    "adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool2d_backward",
    "avg_pool3d_backward",
    "nll_loss2d_forward",
}


class Count(TorchDispatchMode):
    """Count what a step asks of its device. A number that is asked for is 1, or true."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.counts["waits"] += args[0].device.type != "cpu"  # the host's own counters cost nothing
            return True if args[0].dtype == torch.bool else 1.0
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs or {}, out)) if isinstance(t, torch.Tensor)]
        on_card = [t for t in tensors if t.device.type == "card"]
        if on_card:
            self.counts["float64"] += any(t.dtype in (torch.float64, torch.complex128) for t in on_card)
            self.counts["copies between CPU and card"] += any(t.device.type == "cpu" and t.ndim for t in tensors)
            self.counts["refused: " + name] += name in REFUSED
            if name in ("_fft_r2c", "_fft_c2r"):
                self.counts["FFTs"] += 1
                self.counts["FFTs of another layout"] += not args[0].is_contiguous()
        return out


def main(model: ModelConfig, train: TrainConfig) -> dict[str, int]:
    """Count over three steps whose metrics nobody looks at."""
    codec = KernelCodec.fit(sample_gaussian(60, 11, rng=np.random.default_rng(0)), components=6)
    network = BlindUSRNet(model, codec).train()
    mode = OneMode(allow_non_fake_inputs=False)

    def on_card(tensor: torch.Tensor) -> torch.Tensor:
        meta = torch.empty_like(tensor, device="meta")
        return mode.fake_tensor_converter.from_meta_and_device(mode, meta, torch.device("card", 0))

    def drawn(*shape: int) -> torch.Tensor:
        return on_card(torch.empty(shape, device="meta"))

    network._apply(on_card)
    scale = model.scales[-1]
    with mode:
        optimizer = torch.optim.Adam(network.parameters(), lr=train.learning_rate)
        # The fused optimizer, which takes `found_inf`, has no form for fake tensors of this device.
        optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
        schedule = torch.optim.lr_scheduler.LambdaLR(torch.optim.Adam(network.parameters()), lambda done: 1.0)
        average = WeightAverage(network, 0.9)
        learner = Learner(TrainingObjective(network, train), network, average, optimizer, schedule)
        shape = (2, 3, 16 * scale, 16 * scale)
        batch = Batch(drawn(2, 3, 16, 16), drawn(*shape), drawn(2, 11, 11), drawn(2), scale, ("a", "b"), 0)
        ledger = Ledger()
        with Count() as counted:
            for step in range(STEPS):
                ledger.add(step, take_step(learner, batch, train, step), {}, batch.keys)
    return {name: count for name, count in counted.counts.items() if count}


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend("card", backend_module=Backend())
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    settings = TrainConfig.model_validate_json(sys.argv[2])
    torch.use_deterministic_algorithms(settings.deterministic)
    warnings.simplefilter("ignore")  # of fake tensors, and of the optimizer that does nothing
    print(json.dumps(main(ModelConfig.model_validate_json(sys.argv[1]), settings)))
