"""A checkpoint is a model directory plus what training needs to go on: EMA weights, optimizer, state.json.

weights.safetensors  codec.safetensors  model.json     as in pipeline/model/weights.py
ema.safetensors      optimizer.pt       state.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from kernels_bank import KernelCodec
from kernels_bank.runtime.errors import ArtefactError
from pipeline.config import Frozen, RunConfig
from pipeline.data.plan import Stage
from pipeline.model import BlindUSRNet
from pipeline.model.weights import CODEC, load_model, save_model

SCHEMA_VERSION: Literal[1] = 1
STATE, EMA, OPTIMIZER = "state.json", "ema.safetensors", "optimizer.pt"


class State(Frozen):
    """Where a run stands."""

    schema_version: Literal[1] = SCHEMA_VERSION
    step: int
    stages: tuple[Stage, ...]
    score: float  # of the newest validation; which checkpoints are kept hangs on it
    config: RunConfig
    digests: dict[str, str]


def save(
    folder: Path,
    state: State,
    model: BlindUSRNet,
    ema: AveragedModel,
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
) -> None:
    """Write all of a checkpoint into an existing empty folder."""
    save_model(model, folder, provenance=state.digests)
    save_file({k: v.contiguous() for k, v in ema.module.state_dict().items()}, folder / EMA)
    training = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "averaged": ema.n_averaged}
    torch.save(training, folder / OPTIMIZER)
    (folder / STATE).write_text(state.model_dump_json(indent=1), encoding="utf-8")


def load_state(folder: Path, digests: dict[str, str]) -> State:
    """Read where the run stood.

    Raises:
        ArtefactError: a newer format, or the checkpoint was trained on other shards or another bank.
    """
    content = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if content.get("schema_version") != SCHEMA_VERSION:
        raise ArtefactError(
            f"{folder}: checkpoint schema {content.get('schema_version')}, this program reads {SCHEMA_VERSION}"
        )
    state = State.model_validate(content)
    if changed := sorted(name for name in digests if state.digests.get(name) != digests[name]):
        raise ArtefactError(
            f"{folder}: the checkpoint was made from another {' and '.join(changed)}; "
            "give the original data back, start a run under a new name, or say --resume changed"
        )
    return state


def codec_of(folder: Path, bank: KernelCodec) -> KernelCodec:
    """The kernel code that a checkpoint's weights speak.

    Raises:
        ArtefactError: its kernels have another size than those of the bank's code.
    """
    codec = KernelCodec.load(folder / CODEC)
    if codec.size != bank.size:
        raise ArtefactError(f"{folder}: its kernels are {codec.size} pixels wide, those of the bank {bank.size}")
    return codec


def restore(
    folder: Path,
    model: BlindUSRNet,
    ema: AveragedModel,
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
) -> None:
    """Load weights, EMA, optimizer and schedule in place; the learning rates stay those of `schedule`."""
    rates = list(schedule.base_lrs)
    model.load_state_dict(load_model(folder).state_dict())
    device = next(model.parameters()).device
    ema.module.load_state_dict(load_file(folder / EMA, device=str(device)))
    training = torch.load(folder / OPTIMIZER, map_location=device, weights_only=True)
    optimizer.load_state_dict(training["optimizer"])
    schedule.load_state_dict(training["schedule"])
    schedule.base_lrs = rates
    for group, rate, factor in zip(optimizer.param_groups, rates, schedule.lr_lambdas, strict=True):
        group["initial_lr"], group["lr"] = rate, rate * factor(schedule.last_epoch)
    ema.n_averaged.copy_(training["averaged"])


def export(folder: Path, target: str | Path) -> None:
    """Write the model folder that is registered: `weights.safetensors` are the EMA weights, the raw ones lie beside."""
    model = load_model(folder, weights=EMA)
    provenance = json.loads((folder / STATE).read_text(encoding="utf-8"))["digests"]
    save_model(model, target, provenance=provenance, raw=load_model(folder))
