"""Train on a folder of photographs: kernel bank, shards, a few steps from a shipped model, a registered version.

python examples/train_on_your_folder.py [FOLDER]
"""

import sys
from pathlib import Path

from kernels_bank import KernelBankSpec, build_bank
from pipeline.config import DataConfig, RunConfig, TrackingConfig, TrainConfig
from pipeline.data.manifest import ShardSettings
from pipeline.data.photographs import copy_photographs
from pipeline.data.shards import make_shards
from pipeline.model_config import KernelConfig, ModelConfig
from pipeline.training.fit import fit

OUT = Path("examples-output")

folder = sys.argv[1] if len(sys.argv) > 1 else copy_photographs(OUT / "photographs")[0]
build_bank(KernelBankSpec(gaussian=400, motion=400, size=25, components=64), f"{OUT}/bank")
make_shards(str(folder), f"{OUT}/shards", ShardSettings(tile=240, shard_mib=1))
config = RunConfig(
    name="example",
    output=str(OUT / "runs"),
    model=ModelConfig(kernel=KernelConfig(rounds=0, steps=6, prior=True)),
    data=DataConfig(shards=f"{OUT}/shards", bank=f"{OUT}/bank", patch=64, sigma=(0.0, 0.02), task_cpus=0.5),
    train=TrainConfig(steps=8, batch_size=8, cpus_per_worker=0.5, start_from="shipped:blind-sr-x2", learn="restorer"),
    tracking=TrackingConfig(model_name="example-x2"),
)
if __name__ == "__main__":
    fitted = fit(config)
    print(f"version {fitted.version} of example-x2: {fitted.model}")
