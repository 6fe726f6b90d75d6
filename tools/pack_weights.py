"""Keep a model's largest matrix, the first of its initial kernel's net, as 8 bit integers with a step for each column.

It is half of a shipped model's weights. What that costs is in docs/training-log.md.

python -m tools.pack_weights --model shipped:blind-sr --output DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import load_file, save

from pipeline.catalogue import locate
from pipeline.model.int8 import packed, unpacked
from pipeline.model_folder import read_manifest
from tools.model_copy import write_copy

MATRIX = "spectral.first.weight"


def main() -> None:
    """Write the copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="with a spectral initial kernel: shipped:NAME, or a folder")
    parser.add_argument("--output", type=Path, required=True, help="folder of the copy; may be the same folder")
    arguments = parser.parse_args()
    folder = Path(locate(arguments.model).folder)
    manifest = read_manifest(folder)
    weights = unpacked(load_file(folder / manifest.used))
    if MATRIX not in weights:
        parser.error(f"--model {arguments.model}: has no {MATRIX}")
    data = save(weights | packed(MATRIX, weights[MATRIX]))
    write_copy(folder, arguments.output, manifest.used, data, {"initial": f"{MATRIX} in 8 bit"})
    print(f"{arguments.output}: {manifest.used} has {len(data) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
