"""Blend restorers that were trained on from one another: a weighted sum of their weights, in a copy of the first model.

The loss has no barrier between such restorers, so a blend keeps what each has learned and can be better than all.
Negative shares remove what a training has changed: if B and C both started from A, shares of 1 for B, 1 for C and -1
for A combine what the two have learned. Source: Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023.

python -m tools.blend_restorers --models shipped:blind-sr-camera shipped:blind-sr --shares 0.85 0.15 --output DIR
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.catalogue import locate, open_network
from pipeline.model import BlindUSRNet
from pipeline.model_folder import read_manifest
from tools.model_copy import write_copy

_RESTORER = "restorer."


def main() -> None:
    """Write the copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True, nargs="+", help="blind ones; all but its restorer is the first's")
    parser.add_argument("--shares", required=True, nargs="+", type=float, help="one for each; their sum is 1")
    parser.add_argument("--output", type=Path, required=True, help="folder of the copy")
    arguments = parser.parse_args()
    if len(arguments.shares) != len(arguments.models) or not math.isclose(sum(arguments.shares), 1, abs_tol=1e-6):
        parser.error("--shares: give one for each model, with the sum 1")
    places = [locate(uri) for uri in arguments.models]
    networks = [net for place in places if isinstance(net := open_network(place)[0], BlindUSRNet)]
    if len({net.config.restorer for net in networks}) > 1 or len(networks) < len(places):
        parser.error("--models: blind ones whose restorers have one form are needed")
    blended = blend([net.restorer.state_dict() for net in networks], arguments.shares)
    of = ", ".join(f"{share:g} {place.name}" for share, place in zip(arguments.shares, places, strict=True))
    write_blend(blended, Path(places[0].folder), arguments.output, of)
    print(f"{arguments.output}: {places[0].name} with the restorer {of}")


def blend(states: Sequence[dict[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """Return the sum of the weights times their shares, in float32.

    Args:
        states: state dicts of modules with the same architecture.
        shares: share of each.
    """
    return {
        name: torch.stack([share * state[name].float() for state, share in zip(states, shares, strict=True)]).sum(0)
        for name in states[0]
    }


def write_blend(restorer: dict[str, Tensor], model: Path, output: Path, made_of: str) -> None:
    """Copy a model folder with a new restorer; everything else is unchanged, including number formats.

    Args:
        restorer: weights of the restorer.
        model: folder of a blind model.
        output: folder of the copy.
        made_of: shares and names, for the manifest's provenance.
    """
    manifest = read_manifest(model)
    weights = load_file(model / manifest.used)
    weights |= {
        _RESTORER + name: value.to(weights[_RESTORER + name].dtype).contiguous() for name, value in restorer.items()
    }
    write_copy(model, output, manifest.used, save(weights), {"restorer": f"tools/blend_restorers.py: {made_of}"})


if __name__ == "__main__":
    main()
