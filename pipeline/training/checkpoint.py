"""A checkpoint: a model folder plus what training needs to resume, EMA weights, optimizer and state.json.

weights.safetensors  codec.safetensors  ema.safetensors  model.json    as in pipeline/model_folder.py
optimizer.pt         state.json
checkpoint.json      written last: the sha256 of every other file
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from kernels_bank import KernelCodec
from kernels_bank.runtime import storage, uris
from kernels_bank.runtime.errors import ArtefactError
from pipeline.config import RunConfig
from pipeline.data.plan import Stage
from pipeline.frozen import Frozen
from pipeline.model import BlindUSRNet
from pipeline.model.tensors import check_finite, read_tensors, unpickle_tensors
from pipeline.model.weights import load_model, save_model
from pipeline.model_folder import (
    AVERAGED,
    CODEC,
    MANIFEST,
    WEIGHTS,
    FileName,
    Sha256,
    check_folder,
    check_inside,
    first_problem,
    read_file,
    read_manifest,
)

# Version 1 has no checkpoint.json. It can still be read, and is checked against its model.json only.
SCHEMA_VERSION: Literal[2] = 2
STATE, OPTIMIZER, LIST = "state.json", "optimizer.pt", "checkpoint.json"
FILES = (WEIGHTS, AVERAGED, CODEC, MANIFEST, OPTIMIZER, STATE)
_JSON_BYTES = 4 << 20


class State(Frozen):
    """Hold the progress of a run."""

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    step: int = Field(ge=0)
    stages: tuple[Stage, ...]
    score: float  # of the newest validation; it decides which checkpoints are kept
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
    """Write a whole checkpoint into an existing empty folder, the list of digests last.

    Args:
        folder: local folder.
        state: progress of the run.
        model: network with the last step's weights.
        ema: averages of the weights.
        optimizer: optimizer in its present state.
        schedule: schedule in its present state.

    Raises:
        ArtefactError: a weight or a value of the optimizer is not finite.
    """
    training = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "averaged": ema.n_averaged}
    check_finite(training, f"step {state.step}: {OPTIMIZER}")
    save_model(model, folder, provenance=state.digests, averaged=ema.module.state_dict())
    torch.save(training, folder / OPTIMIZER)
    storage.write_bytes(folder / STATE, state.model_dump_json(indent=1).encode())
    storage.write_json(folder / LIST, {"sha256": {name: storage.sha256_of(folder / name) for name in FILES}})


class Digests(Frozen):
    """Hold the content of `checkpoint.json`."""

    sha256: dict[FileName, Sha256] = Field(max_length=16)


def check(folder: str | Path) -> None:
    """Compare every file of a checkpoint with its digest, and check that all values are finite.

    Args:
        folder: local folder or s3:// URI.

    Raises:
        ArtefactError: describes the first file that is not as it was written.
    """
    if not storage.exists(folder):
        raise ArtefactError(f"{folder}: is not there")
    listed = _listed(folder)
    if listed is None:
        check_folder(folder)
        listed = {name: storage.sha256_of(uris.join(folder, name)) for name in FILES}
    if missing := sorted(set(FILES) - listed.keys()):
        raise ArtefactError(f"{uris.join(folder, LIST)}: names no {', '.join(missing)}")
    for name in (MANIFEST, STATE, CODEC):
        read_file(folder, name, listed[name], limit=KernelCodec.MAX_BYTES, listed_in=LIST)
    for name in (WEIGHTS, AVERAGED):
        read_tensors(read_file(folder, name, listed[name], listed_in=LIST), uris.join(folder, name))
    check_finite(
        _training(folder, read_file(folder, OPTIMIZER, listed[OPTIMIZER], listed_in=LIST)),
        uris.join(folder, OPTIMIZER),
    )
    own = read_manifest(folder).sha256
    if other := [name for name in own if listed.get(name) != own[name]]:
        raise ArtefactError(f"{uris.join(folder, other[0])}: is of another checkpoint than {MANIFEST}")


def _listed(folder: str | Path) -> dict[str, str] | None:
    """Return the digests of a checkpoint's files; None for schema version 1, which has no digests."""
    where = uris.join(folder, LIST)
    if not storage.exists(where):
        if read_state(folder).schema_version == 1:
            return None
        raise ArtefactError(f"{where}: no such file; the checkpoint was never finished, or the file was deleted")
    check_inside(folder, LIST)
    try:
        return dict(Digests.model_validate(storage.read_json(where, limit=_JSON_BYTES)).sha256)
    except ValidationError as error:
        raise ArtefactError(f"{where}: {first_problem(error)}; it is damaged") from error


def read_state(folder: str | Path) -> State:
    """Read `state.json`. Raises ArtefactError if it is missing, of a newer format, or damaged."""
    where = uris.join(folder, STATE)
    check_inside(folder, STATE)
    content = storage.read_json(where, limit=_JSON_BYTES)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version not in (1, SCHEMA_VERSION):
        raise ArtefactError(f"{folder}: checkpoint schema {version!r:.40}, this program reads {SCHEMA_VERSION}")
    try:
        return State.model_validate(content)
    except ValidationError as error:
        raise ArtefactError(f"{where}: {first_problem(error)}; it is damaged") from error


def load_state(folder: Path, digests: dict[str, str]) -> State:
    """Read the progress of a run, and check that its data are the same.

    Raises:
        ArtefactError: the format is newer, or the checkpoint was trained on other shards or another bank.
    """
    state = read_state(folder)
    if changed := sorted(name for name in digests if state.digests.get(name) != digests[name]):
        raise ArtefactError(
            f"{folder}: the checkpoint was made from another {' and '.join(changed)}; "
            "give the original data back, start a run under a new name, or say --resume changed"
        )
    return state


def codec_of(folder: Path, bank: KernelCodec) -> KernelCodec:
    """Load the kernel code for which a checkpoint's weights were trained.

    Raises:
        ArtefactError: the code's kernel size differs from that of the bank's code.
    """
    codec = KernelCodec.load(folder / CODEC)
    if codec.size != bank.size:
        raise ArtefactError(f"{folder}: its kernels are {codec.size} pixels wide, those of the bank {bank.size}")
    return codec


def load_into(
    folder: Path,
    model: BlindUSRNet,
    ema: AveragedModel,
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
) -> None:
    """Load weights, EMA, optimizer and schedule in place; the learning rates remain those of `schedule`.

    Args:
        folder: folder of the checkpoint.
        model: network that receives the weights.
        ema: average that receives the averaged weights.
        optimizer: optimizer that receives its moments.
        schedule: schedule that receives its position.
    """
    rates = list(schedule.base_lrs)
    model.load_state_dict(load_model(folder, WEIGHTS).state_dict())
    ema.module.load_state_dict(load_model(folder, AVERAGED).state_dict())
    training = _training(folder, storage.read_bytes(folder / OPTIMIZER))
    optimizer.load_state_dict(training["optimizer"])
    schedule.load_state_dict(training["schedule"])
    schedule.base_lrs = rates
    for group, rate, factor in zip(optimizer.param_groups, rates, schedule.lr_lambdas, strict=True):
        group["initial_lr"], group["lr"] = rate, rate * factor(schedule.last_epoch)
    ema.n_averaged.copy_(training["averaged"])


def export(folder: Path, target: str | Path) -> None:
    """Write the model folder to be registered: the EMA weights as `weights.safetensors`, the raw weights next to them.

    Raises:
        ArtefactError: a file of the checkpoint is damaged, or a weight is not finite; nothing is written.
    """
    check(folder)
    model = load_model(folder, AVERAGED)
    save_model(model, target, provenance=read_state(folder).digests, raw=load_model(folder, WEIGHTS))


def _training(folder: str | Path, data: bytes) -> dict[str, Any]:
    """Return the optimizer, schedule and count of averages. Raises ArtefactError if one is missing."""
    where = uris.join(folder, OPTIMIZER)
    try:
        found = unpickle_tensors(data)
        return {name: found[name] for name in ("optimizer", "schedule", "averaged")}
    except Exception as error:  # torch's reader fails in many ways on other bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtefactError(f"{where}: no state of an optimizer ({reason})") from error
