"""An evaluation from start to end: compute, tables and pictures, and the model's own tracking run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from kernels_bank.runtime import storage, uris
from kernels_bank.runtime.errors import ArtefactError, UnavailableError
from kernels_bank.runtime.lease import Lease
from kernels_bank.runtime.mirror import local_folder
from kernels_bank.runtime.output import check_own, own_output
from pipeline.catalogue import REGISTRY
from pipeline.evaluation import figures
from pipeline.evaluation.compute import JOURNAL, RESULTS, SUMMARY, Plan, evaluate, prepare, save
from pipeline.evaluation.crops import best_median_worst, judged_method, restore_again
from pipeline.evaluation.page import render
from pipeline.evaluation.row import Row
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.evaluation.summary import Cell, cells, print_tables, summarise

REPORT, BARS, SAMPLES = "report.html", "psnr-by-kernel.png", "samples.png"
_KIND = "evaluation"
_SQUARE = 160  # side of a picture in the report, HR pixels


def run_evaluation(settings: EvaluationSettings, output: str | Path) -> dict[str, float]:
    """Evaluate, print the tables, write results and pictures to `output`, record them with a registered model.

    The files are results.parquet (a row per case and method), summary.json, report.html (one self-contained page),
    psnr-by-kernel.png and samples.png.

    Returns:
        The headline numbers by name, such as `psnr.usrnet-table1.Set5-1a2b3c4d.x2.blind`.

    Args:
        settings: models, images and protocol.
        output: folder or s3:// prefix; a killed evaluation of the same settings is resumed there.

    Raises:
        BadRequestError: there is no such model, image, kernel or protocol, they do not fit each other, or the output
            holds something else.
    """
    place = uris.absolute(output)
    with own_output(place, _KIND, _names(place)) as lease, local_folder(place, check=lease.check) as folder:
        return _run(settings, folder, lease)


def _names(place: str) -> tuple[str, ...]:
    """List the names that an output without a mark may not have; none if an earlier version without marks finished."""
    where = uris.join(place, SUMMARY)
    try:
        summary = storage.read_json(where, nan=True) if storage.exists(where) else None  # measured values may be NaN
    except UnavailableError:
        raise
    except ArtefactError:  # not JSON: from another program
        summary = None
    ours = isinstance(summary, dict) and "made_from" in summary
    return () if ours else (JOURNAL, RESULTS, SUMMARY, REPORT, BARS, SAMPLES)


def _run(settings: EvaluationSettings, output: Path, lease: Lease) -> dict[str, float]:
    from pipeline.registry import versions
    from pipeline.tracking.runs import RunRef, log_evaluation

    version = versions.find(settings.model) if settings.model.startswith(REGISTRY) else None
    if version is not None:
        # By number, since an alias may move meanwhile.
        settings = settings.model_copy(update={"model": version.uri})
    plan = prepare(settings)
    rows, reused = evaluate(plan, output)
    protocol, count = plan.protocol, plan.about["kernel_count"]
    table = cells(rows, count)
    print_tables(table, count, protocol, Console(width=110))
    summary = summarise(plan.about, table, protocol)
    headline: dict[str, float] = summary["headline"]
    if reused:
        print(f"{output}: this evaluation was finished before; nothing was computed")
        if not all((output / name).exists() for name in (BARS, SAMPLES, REPORT)):
            _write_pictures(plan, rows, table, output)
    else:
        _write_pictures(plan, rows, table, output)
        lease.check()
        save(rows, summary, output)
    if version is not None:
        # Also if the results existed before: a kill may have come between the results and this step.
        uri = versions.store_uri()
        versions.add_metrics(uri, version.name, version.number, headline)
        folder = f"evaluation/{protocol.name}/{plan.about['test_set']}"
        log_evaluation(RunRef(version.run_id, uri), headline, output, folder)
    return headline


def _write_pictures(plan: Plan, rows: list[Row], table: Sequence[Cell], output: Path) -> None:
    """Write the page and the two pictures; a few cases are restored again for them, since no image was kept."""
    kernels, models, protocol = plan.kernels, plan.models, plan.protocol
    numbers = [n for n in (2, 7, 10) if n <= plan.about["kernel_count"]] or [1]
    storage.write_bytes(output / BARS, figures.bars(table, kernels, protocol))
    storage.write_bytes(output / SAMPLES, figures.samples(rows, kernels, numbers, models, protocol))
    method, shown = judged_method(models), []
    for scale in kernels:
        setting = (scale, protocol.sigmas[scale][0])
        of_scale = [r for r in rows if r.setting == setting and r.method == method]
        for rank, row in best_median_worst(of_scale, protocol.headline).items():
            shown.append((rank, restore_again(row.case, rows, kernels, models, protocol, _SQUARE)))
    page = render(plan.about, table, rows, kernels, shown, protocol)
    storage.write_bytes(output / REPORT, page.encode())


def planned(settings: EvaluationSettings, output: str | Path) -> str:
    """Describe what an evaluation would compute. Raises the same errors as the evaluation before it starts."""
    place = uris.absolute(output)
    check_own(place, _KIND, _names(place))
    plan = prepare(settings)
    images, scales = len(plan.about["images"]), ", ".join(map(str, plan.about["scales"]))
    return (
        f"{plan.about['model']}: {images} images x {plan.about['kernel_count']} kernels at scales {scales}, "
        f"protocol {plan.protocol.name}: {len(plan.cases)} cases of {', '.join(plan.models)}"
    )
