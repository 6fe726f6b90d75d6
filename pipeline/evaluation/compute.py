"""The evaluation as a Ray Data job: every case once, in any order, on any number of workers.

Finished cases are kept in a journal next to the results, so that a killed evaluation resumes where it stopped. The
results are written last, `summary.json` after all others.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

import numpy as np

from kernels_bank import load_kernels
from kernels_bank.runtime import os_errors, storage, uris
from kernels_bank.runtime.cluster import connect
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from kernels_bank.runtime.progress import Progress
from kernels_bank.store import content_digest
from pipeline.evaluation.cases import BLIND, NONBLIND, baselines, crop_hr, make_lr, measure, restore_all
from pipeline.evaluation.images import checked_images
from pipeline.evaluation.protocol import Protocol, load_protocol
from pipeline.evaluation.row import Case, Row
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.images.decode import decode_image
from pipeline.inference import Restorer
from pipeline.inference.allocator import keep_freed_memory
from pipeline.inference.network import default_device
from pipeline.model.blind import ESTIMATE_VERSION

# Ray takes a tenth of a second between the end of a task and the start of the next on the same core.
_CASES_A_TASK = 4
JOURNAL, RESULTS, SUMMARY = "journal.jsonl", "results.parquet", "summary.json"


@dataclass(frozen=True)
class Plan:
    """Hold a prepared evaluation: everything is loaded and checked, nothing is computed."""

    models: dict[str, Restorer]  # by method name
    kernels: dict[int, np.ndarray]  # by scale, (N, k, k)
    protocol: Protocol
    cases: list[Case]
    about: dict[str, Any]  # provenance

    @property
    def methods(self) -> tuple[str, ...]:
        """Return the names of the methods with a row for every case, baselines first."""
        return (*baselines(self.protocol), *self.models)

    @property
    def made_from(self) -> str:
        """Return the digest of everything that affects the numbers."""
        return str(self.about["made_from"])


def prepare(settings: EvaluationSettings) -> Plan:
    """Load the models and check the images.

    Raises:
        BadRequestError: there is no such model, image, kernel or protocol, or they do not fit each other.
    """
    protocol = load_protocol(settings.protocol)
    models = load_models(settings)
    given = None if settings.kernels == "benchmark" else load_kernels(settings.kernels)
    scales = settings.scales or tuple(s for s in models[NONBLIND].scales if s in protocol.sigmas)
    if not scales:
        made_for = ", ".join(map(str, models[NONBLIND].scales))
        raise BadRequestError(f"protocol '{protocol.name}' has none of the model's scales ({made_for})")
    for scale, model in itertools.product(scales, models.values()):
        model.check(scale, kernel_given=True)
        if scale not in protocol.sigmas:
            raise BadRequestError(f"protocol '{protocol.name}' has no scale {scale}; it has {list(protocol.sigmas)}")
    kernels = {scale: protocol.kernels(scale) if given is None else given for scale in scales}
    count = len(kernels[scales[0]])
    # A set for all scales is digested once, like the file that it may have come from.
    sets = [kernels[scales[0]]] if given is not None or protocol.gaussian_widths is None else list(kernels.values())
    kernels_digest = content_digest(np.concatenate(sets))
    images, skipped = checked_images(settings.images, kernels, protocol)
    about = {
        "model": models[NONBLIND].uri,
        "digests": {name: model.digest for name, model in models.items()},
        "protocol": protocol.model_dump(mode="json"),
        "kernels": kernels_digest,
        "kernel_count": count,
        "images": images,
        "test_set": _test_set(settings.images, sorted(images.values()), kernels_digest),
        "scales": list(scales),
    }
    if settings.precision != "float32":  # numbers with the same name must be comparable
        about |= {"precision": settings.precision, "test_set": f"{about['test_set']}-{settings.precision}"}
    if any(model.is_blind for model in models.values()):
        about["estimate"] = ESTIMATE_VERSION
    # Whole tables first, so that the journal of a killed evaluation has complete tables.
    cases = [
        Case(image, number, scale, sigma)
        for scale in scales
        for sigma in protocol.sigmas[scale]
        for image in images
        for number in range(1, count + 1)
    ]
    return Plan(models, kernels, protocol, cases, about | {"made_from": storage.digest_of(about), "skipped": skipped})


def evaluate(plan: Plan, output: Path) -> tuple[list[Row], bool]:
    """Compute the rows of the results, one per case and method.

    The second value is whether an earlier call had finished them in `output`.

    Raises:
        ArtefactError: `output` holds another evaluation, or damaged results.
    """
    if (output / SUMMARY).exists():
        summary = storage.read_json(output / SUMMARY, nan=True)
        if not isinstance(summary, dict) or summary.get("made_from") != plan.made_from:
            raise ArtefactError(f"{output}: holds another evaluation; choose another --output or delete it")
        return _read_rows(plan, output), True
    rows = _compute(plan, output)
    order = {name: i for i, name in enumerate(plan.methods)}
    rows.sort(key=lambda r: (*r.setting, r.case.kernel, r.case.name, order[r.method]))
    return rows, False


def _test_set(uri: str, images: list[str], kernels: str) -> str:
    """Name the test set: the folder's name, and eight digits of the images' and kernels' digests."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", PurePosixPath(uris.absolute(uri)).name)[:60]
    return f"{name}-{storage.digest_of([images, kernels])[:8]}"


def load_models(settings: EvaluationSettings) -> dict[str, Restorer]:
    """Load every model under its method name; the evaluated model is `blind` (if it is blind) and `nonblind`."""
    model = Restorer.load(settings.model, precision=settings.precision)
    models = ({BLIND: model} if model.is_blind else {}) | {NONBLIND: model}
    return models | {uri: Restorer.load(uri, precision=settings.precision) for uri in settings.compare}


def save(rows: list[Row], summary: Mapping[str, Any], output: Path) -> None:
    """Write the results, the summary last, and delete the journal."""
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist([row.as_dict() for row in rows]), sink, write_page_checksum=True)
    storage.write_bytes(output / RESULTS, sink.getvalue().to_pybytes())
    storage.write_json(output / SUMMARY, summary)
    (output / JOURNAL).unlink(missing_ok=True)


def _read_rows(plan: Plan, output: Path) -> list[Row]:
    """Read the results of a finished evaluation. Raises ArtefactError unless it has all rows."""
    import pyarrow as pa
    from pyarrow import parquet

    if not storage.exists(output / RESULTS):
        raise _damaged_results(output)
    data = storage.read_bytes(output / RESULTS)
    try:
        # Without Arrow's threads: one that still held `data` while Python exits would abort the process.
        file = parquet.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        rows = [Row.from_dict(values) for values in file.read(use_threads=False).to_pylist()]
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise _damaged_results(output) from error
    found = Counter((tuple(_key(row.case)), row.method) for row in rows)
    if found != Counter((tuple(_key(case)), method) for case in plan.cases for method in plan.methods):
        raise _damaged_results(output)
    return rows


def _damaged_results(output: Path) -> ArtefactError:
    return ArtefactError(
        f"{output / RESULTS}: gone, damaged, or not of this evaluation; delete it and {SUMMARY}, and run the command "
        "again"
    )


def _compute(plan: Plan, output: Path) -> list[Row]:
    """Return the rows of all cases; cases in the journal are not computed again."""
    from kernels_bank.runtime.rows import rows_of

    journal = output / JOURNAL
    done = _read_journal(journal, plan)
    left = [_key(case) for case in plan.cases if tuple(_key(case)) not in done]
    rows = [row for of_case in done.values() for row in of_case]
    if not left:
        return rows
    appended = io.TextIOWrapper(os_errors.open_named(journal, "ab"), encoding="utf-8")
    with appended as lines, Progress("evaluate", len(plan.cases), "case") as bar:
        if not journal.stat().st_size:
            _add(lines, json.dumps({"made_from": plan.made_from}))
        bar.start_at(len(done))
        for answer in rows_of(_graph(left, plan)):
            of_case = [Row.from_dict(values) for values in json.loads(answer["rows"])]
            _add(lines, answer["rows"])
            rows += of_case
            case = of_case[0].case
            bar.advance(note=f"{case.name} x{case.scale} kernel {case.kernel}")
    return rows


def _add(journal: TextIO, line: str) -> None:
    print(line, file=journal, flush=True)


def _graph(left: list[list[Any]], plan: Plan) -> Any:  # noqa: ANN401 - ray.data.Dataset, imported late
    """Build the dataset, a few cases per task: cases are independent, and one thread each uses the cores best."""
    connect()
    import ray

    # The models are put into the object store once, and each node fetches them once.
    shared = [ray.put((plan.models, plan.kernels, plan.protocol))]
    cards = ray.cluster_resources().get("GPU", 0)
    starts = range(0, len(left), _CASES_A_TASK)
    parts = [{"cases": json.dumps(left[start : start + _CASES_A_TASK])} for start in starts]
    data = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        functools.partial(compute_cases, shared=shared),
        batch_size=1,
        batch_format="numpy",
        num_cpus=1,
        num_gpus=1 if cards else None,
    )
    data.context.target_max_block_size = 1  # each case is yielded as soon as it is finished
    return data


def compute_cases(part: dict[str, Any], shared: list[Any]) -> Iterator[dict[str, list[str]]]:
    """Compute all rows of a task's cases, as JSON."""
    for key in json.loads(part["cases"][0]):
        rows = compute_case(Case(*key), *_fetched(shared[0]))
        yield {"rows": [json.dumps([row.as_dict() for row in rows])]}


def compute_case(
    case: Case, models: Mapping[str, Restorer], kernels: Mapping[int, np.ndarray], protocol: Protocol
) -> list[Row]:
    """Compute the rows of one case, one per method.

    Args:
        case: image and degradation.
        models: models by method name.
        kernels: kernels (N, k, k) by scale.
        protocol: protocol of the evaluation.
    """
    hr = crop_hr(_decoded(case.image), case.scale, protocol)
    kernel = kernels[case.scale][case.kernel - 1]
    lr = make_lr(hr, kernel, case.scale, case.sigma, protocol)
    told = protocol.assumed_kernel(kernel, case.scale)
    return [
        Row(case, method, measure(estimate, hr, lr, told, case.scale, protocol))
        for method, estimate in restore_all(lr, told, case.scale, case.sigma, models, protocol).items()
    ]


@functools.lru_cache(maxsize=1)
def _fetched(reference: Any) -> tuple[dict[str, Restorer], dict[int, np.ndarray], Protocol]:  # noqa: ANN401 - ray.ObjectRef
    """Fetch models to this process's device, kernels and protocol, once per process for any number of cases."""
    import ray
    import torch

    torch.set_num_threads(1)
    keep_freed_memory()
    models, kernels, protocol = ray.get(reference)
    device = default_device()
    placed = {name: model.on(device) for name, model in models.items()}
    return placed, kernels, protocol


@functools.lru_cache(maxsize=2)
def _decoded(uri: str) -> np.ndarray:
    """Decode an image; cases of one image follow each other, so each worker decodes it once."""
    return decode_image(storage.read_bytes(uri))


def _key(case: Case) -> list[Any]:
    return [case.image, case.kernel, case.scale, case.sigma]


def _read_journal(path: Path, plan: Plan) -> dict[tuple[Any, ...], list[Row]]:
    """Return the finished cases of an earlier, killed call. A truncated last line is removed, its case done again."""
    if not path.exists():
        return {}
    content = storage.read_bytes(path)
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        storage.write_bytes(path, whole)
    if not whole:
        return {}
    done, known = {}, {tuple(_key(case)) for case in plan.cases}
    try:
        first, *lines = whole.decode().splitlines()
        if json.loads(first)["made_from"] != plan.made_from:
            raise ArtefactError(f"{path.parent}: holds another evaluation; choose another --output or delete it")
        for line in lines:
            rows = [Row.from_dict(values) for values in json.loads(line)]
            (case,) = {tuple(_key(row.case)) for row in rows}
            if case not in known or sorted(row.method for row in rows) != sorted(plan.methods):
                raise ValueError(f"{case}: no case of this evaluation")
            done[case] = rows
    except ArtefactError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtefactError(f"{path}: damaged; delete it and run the command again") from error
    return done
