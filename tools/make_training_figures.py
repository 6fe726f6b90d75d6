"""The curves from scratch of docs/network.md: curves of runs, read from the tracking store.

python -m tools.make_training_figures --store sqlite:///runs/mlflow.db --experiment from-scratch
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt

from pipeline.tracking.store import checked_uri, client

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "from-scratch.png"
_WINDOW = 5  # number of averaged points of the training loss


def main() -> None:
    """Draw the runs of an experiment side by side and print their final values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True, help="tracking URI")
    parser.add_argument("--experiment", default="from-scratch")
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    api = client(checked_uri(arguments.store))
    experiment = api.get_experiment_by_name(arguments.experiment)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    for run in sorted(api.search_runs([experiment.experiment_id]), key=lambda run: str(run.info.run_name)):
        name = run.info.run_name.removeprefix("from-scratch-")
        steps, loss = curve(api, run.info.run_id, "loss_image")
        smooth = np.convolve(loss, np.ones(_WINDOW) / _WINDOW, "valid")
        left.plot(steps[_WINDOW - 1 :], smooth, label=name)
        steps, psnr = curve(api, run.info.run_id, "val_psnr")
        right.plot(steps, psnr, marker=".", label=name)
        print(name, ", ".join(f"{step}: {value:.2f} dB" for step, value in zip(steps, psnr, strict=True)))
    left.set(xlabel="step", ylabel="L1 of the image, training", yscale="log", ylim=(0.025, 0.25))
    right.set(xlabel="step", ylabel="PSNR of held-out tiles (averaged weights), dB")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=80)


def curve(api: object, run_id: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Load the steps and values of a metric."""
    points = api.get_metric_history(run_id, metric)  # type: ignore[attr-defined]
    return np.array([p.step for p in points]), np.array([p.value for p in points])


if __name__ == "__main__":
    main()
