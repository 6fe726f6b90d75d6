"""Networks on disk: the published USRNet checkpoints, and our own folders of safetensors + JSON.

`pipeline/model_folder.py` describes the model folder. Every file is checked against its digest, and every tensor for
NaN and infinity. Only published .pth files are unpickled, with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from kernels_bank.codec import KernelCodec
from kernels_bank.runtime.errors import ArtefactError
from kernels_bank.runtime.storage import exists, read_bytes, read_json, write_bytes
from kernels_bank.runtime.uris import join
from pipeline.model.blind import BlindUSRNet
from pipeline.model.foreign import Found
from pipeline.model.tensors import check_finite, check_fit, fill, read_checkpoint, read_tensors
from pipeline.model.usrnet import USRNet
from pipeline.model_config import ModelConfig, RestorerConfig
from pipeline.model_folder import (
    AVERAGED,
    CODEC,
    MANIFEST,
    RAW,
    WEIGHTS,
    ModelManifest,
    check_file,
    first_problem,
    read_file,
    read_manifest,
    write_manifest,
)

# The full model has 70 MB. A file of our own folders may have the size that its configuration needs, and no more.
_PUBLISHED_BYTES = 2 << 30
_SLACK_BYTES = 8 << 20  # names and shapes in the header


def load_usrnet(path: str | Path) -> USRNet:
    """Load a published or own USRNet checkpoint as a network in eval mode; tensor shapes determine its architecture.

    Reads `.pth` state dicts in the layouts of `foreign.py`, and `.safetensors`.

    Raises:
        ArtefactError: not a checkpoint, or tensors that are missing, left over, of another shape or not finite.
    """
    return read_usrnet(path)[0]


def read_usrnet(path: str | Path) -> tuple[USRNet, Found]:
    """Load a USRNet checkpoint as `load_usrnet` does, with its place in the file. Raises ArtefactError."""
    found = read_checkpoint(read_bytes(path, limit=_PUBLISHED_BYTES), str(path))
    net = USRNet(usrnet_config(found.state, str(path)))
    fill(net, found.state, str(path))
    return net.eval(), found


def usrnet_config(state: Mapping[str, Tensor], where: str) -> RestorerConfig:
    """Infer the architecture of a USRNet from its state dict.

    Raises ArtefactError that names a missing tensor.
    """
    try:
        levels = ["p.m_head.weight", "p.m_down1.{}.weight", "p.m_down2.{}.weight", "p.m_down3.{}.weight"]
        blocks = sum(1 for name in state if name.startswith("p.m_body.") and name.endswith(".res.0.weight"))
        widths = tuple(int(state[name.format(blocks)].shape[0]) for name in levels)
        last = state["h.mlp.4.weight"]
        hidden = last.shape[1]
    except KeyError as error:
        raise ArtefactError(f"{where}: not a USRNet checkpoint, it has no tensor {error}") from error
    except IndexError as error:
        raise ArtefactError(f"{where}: not a USRNet checkpoint, a tensor has too few dimensions") from error
    try:
        return RestorerConfig(
            unfoldings=last.shape[0] // 2,
            widths=widths,
            residual_blocks=blocks,
            hyper_hidden=hidden,
            global_skip=False,
            x0="nearest",
        )
    except ValidationError as error:
        raise ArtefactError(f"{where}: not a USRNet checkpoint ({first_problem(error)})") from error


def save_model(
    model: BlindUSRNet | USRNet,
    directory: str | Path,
    provenance: Mapping[str, str],
    raw: BlindUSRNet | USRNet | None = None,
    averaged: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model folder, its manifest last.

    Args:
        model: network to save.
        directory: local folder or s3:// URI.
        provenance: origin of the model (bank and shard digests, run id, ...).
        raw: the same network with the weights that `model` averages, saved next to it.
        averaged: for a checkpoint: the averages of `model`'s weights, which are used instead of them.

    Raises:
        ArtefactError: a weight is not finite; nothing is written.
    """
    states: dict[str, Mapping[str, Tensor]] = {WEIGHTS: model.state_dict()}
    if raw is not None:
        states[RAW] = raw.state_dict()
    if averaged is not None:
        states[AVERAGED] = averaged
    for name, state in states.items():
        check_finite(state, join(directory, name))
    digests = {}
    for name, state in states.items():
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        digests[name] = _write(directory, name, safetensors.torch.save(tensors))
    if isinstance(model, BlindUSRNet):
        digests[CODEC] = _write(directory, CODEC, model.codec.to_bytes())
    manifest = ModelManifest(
        kind="blind" if isinstance(model, BlindUSRNet) else "usrnet",
        config=model.config,
        kernel_size=model.kernel_size if isinstance(model, BlindUSRNet) else None,
        sha256=digests,
        provenance=dict(provenance),
    )
    write_manifest(directory, manifest)


def _write(directory: str | Path, name: str, data: bytes) -> str:
    write_bytes(join(directory, name), data)
    return hashlib.sha256(data).hexdigest()


def load_model(directory: str | Path, weights: str | None = None) -> BlindUSRNet | USRNet:
    """Load the network of a model folder in eval mode; every file's digest is checked.

    Args:
        directory: folder written by `save_model`.
        weights: a weights file of the folder; by default a checkpoint's averages, otherwise `weights.safetensors`.

    Raises:
        ArtefactError: a file is missing or changed, a newer schema, tensors or a codec that do not fit the config, or
            are not finite.
    """
    manifest = _listed(directory, read_manifest(directory))
    weights = weights or manifest.used
    where = join(directory, weights)
    if weights not in manifest.sha256:
        raise ArtefactError(f"{where}: {MANIFEST} gives no digest of it, so it is not used")
    for name in manifest.sha256.keys() - {weights, CODEC}:
        check_file(directory, name, manifest.sha256[name])
    codec = None
    if manifest.kind == "blind":
        if CODEC not in manifest.sha256:
            raise ArtefactError(f"{join(directory, CODEC)}: {MANIFEST} gives no digest of it, so it is not used")
        data = read_file(directory, CODEC, manifest.sha256[CODEC], limit=KernelCodec.MAX_BYTES)
        codec = KernelCodec.from_bytes(data, join(directory, CODEC))
    if manifest.kernel_size != (codec and codec.size):
        kernels = "a USRNet alone has none" if codec is None else f"those of {CODEC} have {codec.size} pixels a side"
        raise ArtefactError(
            f"{join(directory, MANIFEST)}: kernel_size {manifest.kernel_size}, but {kernels}; "
            "the file was changed, copy the folder again"
        )
    # On the meta device first: a configuration can ask for any size, and the file is read only if it has that size.
    with torch.device("meta"):
        shell = _build(manifest.config, codec)
    limit = 2 * sum(t.numel() * t.element_size() for t in shell.state_dict().values()) + _SLACK_BYTES
    state = read_tensors(read_file(directory, weights, manifest.sha256[weights], limit=limit), where)
    check_fit(shell, state, where)
    model = _build(manifest.config, codec)
    fill(model, state, where)
    return model.eval()


def _build(config: ModelConfig | RestorerConfig, codec: KernelCodec | None) -> BlindUSRNet | USRNet:
    if isinstance(config, RestorerConfig):
        return USRNet(config)
    assert codec is not None
    return BlindUSRNet(config, codec)


def _listed(directory: str | Path, manifest: ModelManifest) -> ModelManifest:
    """Add a checkpoint's averages to a manifest of schema version 1, which did not record their digest."""
    state = join(directory, "state.json")
    if AVERAGED in manifest.sha256 or not exists(join(directory, AVERAGED)) or not exists(state):
        return manifest
    if dict(read_json(state, limit=_SLACK_BYTES)).get("schema_version") != 1:
        return manifest
    digest = hashlib.sha256(read_bytes(join(directory, AVERAGED), limit=_PUBLISHED_BYTES)).hexdigest()
    return manifest.model_copy(update={"sha256": manifest.sha256 | {AVERAGED: digest}})
