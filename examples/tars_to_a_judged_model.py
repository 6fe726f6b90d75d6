"""Go from a bucket of tars to a trained, registered and judged model, on a local cluster, in minutes.

python examples/tars_to_a_judged_model.py [TARS]

TARS is a folder or s3:// prefix of tars with images, as WebDataset writes them. Without it, two are made of
photographs by plain `tarfile`, one of them with weight 2.
"""

import os
import sys
import tarfile
from pathlib import Path

import numpy as np

from kernels_bank import KernelBankSpec, benchmark_kernels, build_bank
from pipeline.config import DataConfig, RunConfig, ShardSetConfig, TrackingConfig, TrainConfig
from pipeline.data.manifest import ShardSettings
from pipeline.data.photographs import copy_photographs
from pipeline.data.shards import make_shards
from pipeline.evaluation.evaluate import run_evaluation
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.model_config import KernelConfig, ModelConfig
from pipeline.training.fit import fit

OUT = Path("examples-output")


def plain_tars() -> list[str]:
    """Pack the photographs of the quickstart, two in each tar."""
    photographs = sorted(copy_photographs(OUT / "photographs")[0].iterdir())
    (OUT / "tars").mkdir(parents=True, exist_ok=True)
    for number in range(2):
        with tarfile.open(OUT / f"tars/part-{number}.tar", "w") as tar:
            for photograph in photographs[2 * number : 2 * number + 2]:
                tar.add(photograph, photograph.name)
    return [str(OUT / f"tars/part-{number}.tar") for number in range(2)]


if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{OUT.absolute()}/runs/mlflow.db")
    sets = []
    for number, source in enumerate(sys.argv[1:] or plain_tars()):
        sets.append(ShardSetConfig(uri=f"{OUT}/mixed/{number}", weight=2 if number else 1))
        make_shards(source, sets[-1].uri, ShardSettings(tile=240, shard_mib=1, codec="raw"))
    build_bank(KernelBankSpec(gaussian=400, motion=0, size=25, components=64), f"{OUT}/mixed-bank")
    config = RunConfig(
        name="mixed",
        output=str(OUT / "runs"),
        model=ModelConfig(scales=(2, 3, 4), kernel=KernelConfig(rounds=0, reductions=True)),
        data=DataConfig(shards=tuple(sets), bank=f"{OUT}/mixed-bank", patch=96, sigma=(0.0, 0.02), task_cpus=0.5),
        train=TrainConfig(
            steps=8, batch_size=4, cpus_per_worker=0.5, start_from="shipped:blind-sr-camera", learn="restorer"
        ),
        tracking=TrackingConfig(model_name="mixed"),
    )
    fitted = fit(config)
    print(f"version {fitted.version} of mixed: {fitted.model}")
    quick = Protocol(name="quick", crop=128, sigmas={2: (0.0,)})
    (OUT / "quick.yaml").write_text(quick.model_dump_json(exclude_defaults=True))  # JSON is YAML
    np.save(OUT / "kernels.npy", benchmark_kernels()[::4])  # three of the article's twelve
    judged = EvaluationSettings(
        model="models:/mixed@candidate",
        images=str(copy_photographs(OUT / "photographs")[1]),
        kernels=str(OUT / "kernels.npy"),
        protocol=str(OUT / "quick.yaml"),
        scales=(2,),
    )
    summary = run_evaluation(judged, OUT / "judged")
    print(summary)
