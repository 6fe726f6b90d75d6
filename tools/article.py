"""Make the article's two tables anew, in docs/article.md: twelve kernels, two experiments, blind and non-blind.

The runs are those of jobs/configs/article-*.yaml. Each is evaluated at its own scale; an evaluation that was finished
in `--output` before is taken as it is.

python -m tools.article --runs runs --images CBSD68 --kernels kernels_12.mat --output report
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from pyarrow import parquet

from kernels_bank.runtime import storage
from pipeline.evaluation.compute import RESULTS, SUMMARY
from pipeline.evaluation.evaluate import run_evaluation
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.tracking.store import checked_uri, client
from tools.blocks import write_block
from tools.make_training_figures import curve

ROOT = Path(__file__).parents[1]
PAGE, CURVES = ROOT / "docs" / "article.md", ROOT / "docs" / "pictures" / "article-curves.png"
PROTOCOL = ROOT / "jobs" / "configs" / "protocols" / "noise-free.yaml"
EXPERIMENTS = {"mixed": (2, 3, 4), "gaussian": (2, 4)}
_TITLES = {
    "mixed": "100,000 Gaussian and 100,000 motion kernels",
    "gaussian": "Random Gaussian kernels",
}
_METHODS = ("bicubic", "blind", "nonblind")
_GROUPS = {"Gaussian": range(1, 9), "motion": range(9, 13)}

Means = dict[str, dict[str, list[float]]]  # method -> measure -> a value for each kernel


def main() -> None:
    """Run missing evaluations, and write page and curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", required=True, help="folder of the runs")
    parser.add_argument("--images", required=True, help="folder of sharp photographs, CBSD68 for the article's")
    parser.add_argument("--kernels", required=True, help="the twelve kernels: a .mat file")
    parser.add_argument("--output", required=True, help="folder for the evaluations")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--store", help="tracking URI; default: the SQLite file of the runs")
    given = parser.parse_args()
    parts = []
    for kind, scales in EXPERIMENTS.items():
        folders = {scale: Path(given.output) / f"{kind}-x{scale}" for scale in scales}
        for scale, folder in folders.items():
            settings = EvaluationSettings(
                model=f"{given.runs}/article-{kind}-x{scale}/model",
                images=given.images,
                kernels=given.kernels,
                scales=(scale,),
                protocol=str(PROTOCOL),
                precision=given.precision,
            )
            run_evaluation(settings, folder)
        parts += [f"### {_TITLES[kind]}", table({s: means(f) for s, f in folders.items()})]
        parts += ["By round, mean PSNR of each restoration as it is:", rounds_table(folders)]
    draw_curves(given.store or f"sqlite:///{Path(given.runs).absolute()}/mlflow.db")
    write_block(PAGE, "tools.article", "\n\n".join(["", *parts, ""]))


def means(folder: Path) -> Means:
    """Load the means of a finished evaluation by method, measure and kernel."""
    summary = storage.read_json(str(folder / SUMMARY), nan=True)
    return {entry["method"]: entry["by_kernel"] for entry in summary["means"]}


def table(by_scale: dict[int, Means]) -> str:
    """Write tables with a row per kernel, and for each scale bicubic, blind and non-blind, plain and best-shifted.

    One table has two scales at most, so that its lines stay readable.

    Args:
        by_scale: results of `means` by scale.
    """
    rows = [(str(kernel), [kernel]) for kernel in range(1, 13)]
    rows += [(f"**{name}**", list(numbers)) for name, numbers in _GROUPS.items()]
    tables = []
    for first in range(0, len(by_scale), 2):
        part = list(by_scale.items())[first : first + 2]
        heads = [f"x{scale} {name}" for scale, _ in part for name in ("bicubic", "**blind**", "non-blind")]
        lines = [_line(["kernel", *heads]), _line(["---"] * (len(heads) + 1))]
        for name, numbers in rows:
            cells = [_cell(found[method], numbers) for _, found in part for method in _METHODS]
            lines.append(_line([name, *cells]))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _cell(measures: dict[str, list[float]], kernels: Sequence[int]) -> str:
    plain, shifted = (
        np.mean([measures[name][kernel - 1] for kernel in kernels]) for name in ("psnr_rgb", "psnr_rgb_shifted")
    )
    return f"{plain:.2f} / {shifted:.2f}"


def rounds_table(folders: dict[int, Path]) -> str:
    """Write the mean PSNR after each kernel estimate, and the guarded result, by kernel group and scale."""
    found: dict[str, list[float]] = {}
    for scale, folder in folders.items():
        rows = [row for row in parquet.read_table(folder / RESULTS).to_pylist() if row["method"] == "blind"]
        for name, kernels in _GROUPS.items():
            of_group = [row for row in rows if row["kernel"] in kernels]
            each = np.mean([row["psnr_rounds"] for row in of_group], axis=0)
            found[f"x{scale} {name}"] = [*each, float(np.mean([row["psnr_rgb"] for row in of_group]))]
    count = len(next(iter(found.values()))) - 1
    heads = ["", "delta", *(f"round {number}" for number in range(1, count)), "guarded"]
    lines = [_line(heads), _line(["---"] * len(heads))]
    return "\n".join([*lines, *(_line([name, *(f"{v:.2f}" for v in values)]) for name, values in found.items())])


def draw_curves(store: str) -> None:
    """Draw the kernel error of held-out tiles by step and round, of every article run, to `CURVES`."""
    matplotlib.use("Agg")
    api = client(checked_uri(store))
    experiment = api.get_experiment_by_name("article")
    found: dict[str, Any] = {}
    for run in sorted(api.search_runs([experiment.experiment_id]), key=lambda one: one.info.start_time):
        found[str(run.info.run_name)] = run  # the newest of several with the same name
    figure, axes = plt.subplots(1, len(found), figsize=(3.1 * len(found), 3.2), sharey=True)
    for axis, (name, run) in zip(np.atleast_1d(axes), sorted(found.items()), strict=True):
        _draw(axis, name, lambda metric, run_id=run.info.run_id: curve(api, run_id, metric))
    np.atleast_1d(axes)[0].set_ylabel("held-out tiles: sum |k' - k|")
    figure.tight_layout()
    figure.savefig(CURVES, dpi=80)


def _draw(axis: Any, name: str, points: Callable[[str], tuple[np.ndarray, np.ndarray]]) -> None:  # noqa: ANN401 - matplotlib
    for number in range(1, 9):
        steps, error = points(f"val_kernel_error_round_{number}")
        if len(steps):
            axis.plot(steps, error, marker=".", label=f"round {number}")
    axis.set(title=name, xlabel="step")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
