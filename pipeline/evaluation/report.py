"""An evaluation from start to end: compute, tables and pictures, and the model's own tracking run."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from kernels_bank.runtime import storage
from pipeline.evaluation import figures
from pipeline.evaluation.run import evaluate, prepare, save
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.evaluation.summary import cells, print_tables, summarise

BARS, SAMPLES = "psnr-by-kernel.png", "samples.png"


def run_evaluation(settings: EvaluationSettings, output: Path) -> dict[str, float]:
    """Evaluate, print the tables, write results and pictures to `output`, record them with a registered model.

    Writes results.parquet (a row a case and method), summary.json, psnr-by-kernel.png and samples.png.

    Returns:
        The headline numbers by name, such as `psnr.usrnet-table1.Set5-1a2b3c4d.x2.blind`.

    Raises:
        BadRequestError: see `pipeline.evaluation.run`.
    """
    from pipeline.tracking import registry
    from pipeline.tracking.runs import RunLogger, RunRef

    version = registry.find(settings.model) if settings.model.startswith("models:/") else None
    if version is not None:
        # By number: an alias may move while we work.
        settings = settings.model_copy(update={"model": version.uri})
    plan = prepare(settings)
    rows, reused = evaluate(plan, output)
    kernels, protocol = plan.kernels, plan.protocol
    table = cells(rows, len(kernels))
    print_tables(table, len(kernels), protocol, Console(width=110))
    summary = summarise(plan.about, table, protocol)
    headline: dict[str, float] = summary["headline"]
    if reused:
        print(f"{output}: this evaluation was finished before; nothing was computed")
    else:
        numbers = [n for n in (2, 7, 10) if n <= len(kernels)] or [1]
        storage.write_bytes(output / BARS, figures.bars(table, kernels, protocol))
        storage.write_bytes(output / SAMPLES, figures.samples(rows, kernels, numbers, plan.models, protocol))
        save(rows, summary, output)
    if version is not None:
        # Also when it was computed before: a kill may have come between the results and this.
        uri = registry.store_uri()
        registry.add_metrics(uri, version.name, version.number, headline)
        with RunLogger(RunRef(version.run_id, uri)) as logger:
            logger.metrics(0, headline)
            logger.artifacts(output, f"evaluation/{protocol.name}/{plan.about['test_set']}")
    return headline


def planned(settings: EvaluationSettings) -> str:
    """What an evaluation would compute; raises what it would raise before it starts."""
    plan = prepare(settings)
    images, scales = len(plan.about["images"]), ", ".join(map(str, plan.about["scales"]))
    return (
        f"{plan.about['model']}: {images} images x {len(plan.kernels)} kernels at scales {scales}, "
        f"protocol {plan.protocol.name}: {len(plan.cases)} cases of {', '.join(plan.models)}"
    )
