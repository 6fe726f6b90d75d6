"""Networks on disk: the published USRNet checkpoints, and our own folders of safetensors + JSON.

A model folder holds `weights.safetensors`, `model.json` (written last), for a blind model `codec.safetensors`, and for
a finished run `weights-raw.safetensors`: the last step's weights, of which the others are averages over the steps.
Nothing is unpickled but published .pth files, and those with `weights_only=True`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kernels_bank.codec import KernelCodec
from kernels_bank.runtime.errors import ArtefactError
from kernels_bank.runtime.storage import join, read_bytes, read_json, sha256_of, write_bytes, write_json
from pipeline.config import ModelConfig
from pipeline.model.blind import BlindUSRNet
from pipeline.model.usrnet import USRNet

SCHEMA_VERSION = 1
WEIGHTS, CODEC, MANIFEST = "weights.safetensors", "codec.safetensors", "model.json"
RAW = "weights-raw.safetensors"


def load_usrnet(path: str | Path) -> USRNet:
    """A published (or own) USRNet checkpoint as a network in eval mode, its architecture read off the tensors.

    Reads `.pth` state dicts, plain or under KAIR's `params` key, and `.safetensors`.

    Raises:
        ArtefactError: not a checkpoint, or tensors that are missing, left over or of another shape.
    """
    state = _read_state(str(path))
    net = USRNet(usrnet_config(state, str(path)))
    _fill(net, state, str(path))
    return net.eval()


def usrnet_config(state: Mapping[str, Tensor], where: str) -> ModelConfig:
    """The architecture a USRNet state dict was made for. Raises ArtefactError that names a missing tensor."""
    try:
        levels = ["p.m_head.weight", "p.m_down1.{}.weight", "p.m_down2.{}.weight", "p.m_down3.{}.weight"]
        blocks = sum(1 for name in state if name.startswith("p.m_body.") and name.endswith(".res.0.weight"))
        widths = tuple(int(state[name.format(blocks)].shape[0]) for name in levels)
        last = state["h.mlp.4.weight"]
    except KeyError as error:
        raise ArtefactError(f"{where}: not a USRNet checkpoint, it has no tensor {error}") from error
    try:
        return ModelConfig(
            scales=(1, 2, 3, 4),
            unfoldings=last.shape[0] // 2,
            widths=widths,
            residual_blocks=blocks,
            hyper_hidden=last.shape[1],
            global_skip=False,
            rounds=1,
            schedule="rounds",
            x0="nearest",
        )
    except ValidationError as error:
        raise ArtefactError(f"{where}: not a USRNet checkpoint ({error.errors()[0]['msg']})") from error


def save_model(
    model: BlindUSRNet | USRNet,
    directory: str | Path,
    provenance: Mapping[str, str],
    raw: BlindUSRNet | USRNet | None = None,
) -> None:
    """Write a model folder.

    Args:
        model: what is used.
        directory: local or s3://.
        provenance: what the model came from (bank and shard digests, run id, ...).
        raw: the same network with the weights that `model` averages, kept beside.
    """
    files = []
    for name, network in ((WEIGHTS, model), (RAW, raw)):
        if network is not None:
            tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
            write_bytes(join(directory, name), safetensors.torch.save(tensors))
            files.append(name)
    if isinstance(model, BlindUSRNet):
        model.codec.save(join(directory, CODEC))
        files.append(CODEC)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "kind": "blind" if isinstance(model, BlindUSRNet) else "usrnet",
        "config": model.config.model_dump(mode="json"),
        "kernel_size": model.kernel_size if isinstance(model, BlindUSRNet) else None,
        "sha256": {name: sha256_of(join(directory, name)) for name in files},
        "provenance": dict(provenance),
    }
    write_json(join(directory, MANIFEST), manifest)


def load_model(directory: str | Path, weights: str = WEIGHTS) -> BlindUSRNet | USRNet:
    """The network of a model folder in eval mode, every file's digest checked.

    Args:
        directory: what `save_model` wrote.
        weights: another weights file in the same folder, such as a checkpoint's averaged weights.

    Raises:
        ArtefactError: a file is missing or changed, a newer schema, tensors that do not fit the config.
    """
    where = join(directory, MANIFEST)
    manifest = read_json(where)
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtefactError(f"{where}: schema version {version}, this program reads {SCHEMA_VERSION}; update it")
    try:
        config = ModelConfig.model_validate(manifest["config"])
        kind, digests = manifest["kind"], manifest["sha256"]
    except KeyError as error:
        raise ArtefactError(f"{where}: no field {error}; save the model again") from error
    except ValidationError as error:
        field, reason = ".".join(map(str, error.errors()[0]["loc"])), error.errors()[0]["msg"]
        raise ArtefactError(f"{where}: config.{field}: {reason}") from error
    for name in sorted({weights, *digests} - ({WEIGHTS} - {weights})):
        if (found := sha256_of(join(directory, name))) != digests.get(name, found):
            raise ArtefactError(
                f"{join(directory, name)}: sha256 {found[:12]} is not the {digests[name][:12]} of {MANIFEST}; "
                "the file was changed or damaged, copy the folder again"
            )
    model: BlindUSRNet | USRNet
    match kind:
        case "blind":
            model = BlindUSRNet(config, KernelCodec.load(join(directory, CODEC)))
        case "usrnet":
            model = USRNet(config)
        case other:
            raise ArtefactError(f"{where}: unknown kind of model '{other}'")
    _fill(model, _read_state(join(directory, weights)), join(directory, weights))
    return model.eval()


def _read_state(path: str) -> dict[str, Tensor]:
    data = read_bytes(path)
    try:
        if path.endswith(".safetensors"):
            return dict(safetensors.torch.load(data))
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # bytes that are no checkpoint fail in torch's reader in any way: IndexError, KeyError ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtefactError(f"{path}: not a checkpoint of tensors ({reason})") from error
    if isinstance(state, dict) and isinstance(state.get("params"), dict):
        state = state["params"]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ArtefactError(f"{path}: not a state dict (a mapping from names to tensors)")
    return state


def _fill(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load exactly: every tensor of the model, and no other."""
    own = model.state_dict()
    problems = [f"missing {', '.join(sorted(own.keys() - state.keys()))}"] if own.keys() - state.keys() else []
    if extra := sorted(state.keys() - own.keys()):
        problems.append(f"left over {', '.join(extra)}")
    problems += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    if problems:
        raise ArtefactError(f"{where}: the tensors do not fit the model: {'; '.join(problems)}")
    model.load_state_dict(dict(state))
