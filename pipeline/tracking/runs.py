"""A tracking run from the driver's side: opened once, found again after a kill, closed with its status.

The driver opens the run and passes its `RunRef` to rank 0, which writes through a `RunLogger`.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from kernels_bank.runtime import folders
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.process import user_name
from kernels_bank.runtime.redact import mask, mask_text
from kernels_bank.runtime.storage import digest_of
from pipeline.tracking.logger import RunLogger
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.sqlite import artifact_root, prepare_store
from pipeline.tracking.store import RunRef, clause, client, plain_errors, reason_of, tracking_uri, use_store

__all__ = [
    "RunLogger",
    "RunRef",
    "code_revision",
    "finish",
    "log_evaluation",
    "log_input",
    "open_run",
    "prepare_store",
    "send_unsent",
    "tracking_uri",
    "use_store",
]

RUN_KEY = "blindsr.run_key"
_PARAMS_PER_REQUEST = 100
_log = logging.getLogger(__name__)


def open_run(
    experiment: str,
    name: str,
    uri: str,
    params: Mapping[str, object],
    tags: Mapping[str, str],
    resume_id: str | None = None,
    key: str | None = None,
) -> RunRef:
    """Open the tracking run of a training run: a new one, or the one it was recorded in before.

    `resume_id` is reopened if it still exists. Without it, a run of the same `key` that a killed driver left RUNNING
    before its first metric is taken over, so that runs are not duplicated. A run with metrics belongs to work whose
    files are gone, and is closed as KILLED.

    Args:
        experiment: MLflow experiment, which is created if it does not exist.
        name: display name of the run.
        uri: tracking URI from `tracking_uri`.
        params: nested mapping, which is logged once, flattened (`train.steps`) and masked. On a resume, values that
            differ from the recorded ones become tags `resumed.<path>`, since MLflow's parameters cannot change.
        tags: digests, code revision and the like; replaced on a resume.
        resume_id: MLflow run id from before the resume.
        key: identity of the training run across restarts, such as the URI of its folder; by default its machine, name
            and parameters.

    Raises:
        BadRequestError: the store cannot be reached or refuses the request, or the experiment was deleted.
    """
    flat = {path: mask(path, value)[:6000] for path, value in flatten(params)}
    shown = {path: mask(path, value) for path, value in tags.items()}
    key = key or digest_of([socket.gethostname(), name, params])
    api = client(uri)
    with plain_errors(uri, f"cannot open run '{name}'"):
        run = _earlier_run(uri, resume_id) or _orphan(uri, experiment, key)
        if run is None:
            origin = {"mlflow.user": user_name(), "mlflow.source.name": Path(sys.argv[0]).name}
            run = api.create_run(_experiment(uri, experiment), run_name=name, tags={**origin, **shown, RUN_KEY: key})
        else:
            api.update_run(run.info.run_id, status="RUNNING")
            known = run.data.params
            changed = {f"resumed.{k}": v for k, v in flat.items() if k in known and known[k] != v}
            _log_batches(uri, run.info.run_id, tags={**shown, **changed, RUN_KEY: key})
            flat = {path: value for path, value in flat.items() if path not in known}
        _log_batches(uri, run.info.run_id, params=flat)
    return RunRef(run.info.run_id, uri)


def finish(ref: RunRef, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """Close the run. An unavailable store is only warned about, since the caller may be handling the real error."""
    try:
        client(ref.tracking_uri).set_terminated(ref.run_id, status)
    except Exception as error:
        _log.warning("run %s could not be closed as %s: %s", ref.run_id, status, reason_of(error))


def log_input(ref: RunRef, name: str, digest: str, uri: str) -> None:
    """Record an input of a run. `digest` is the artefact's sha256, of which MLflow keeps 36 characters.

    Args:
        ref: the run.
        name: kind of input, such as `shards`.
        digest: sha256 of the input.
        uri: place of the input.

    Raises:
        BadRequestError: the store cannot be reached or refuses the request.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": mask_text(uri), "sha256": digest})
    dataset = Dataset(name=name, digest=digest[:36], source_type="code", source=source)
    item = DatasetInput(dataset, [InputTag("mlflow.data.context", "training"), InputTag("sha256", digest)])
    with plain_errors(ref.tracking_uri, f"cannot record the {name} of the run"):
        client(ref.tracking_uri).log_inputs(ref.run_id, datasets=[item])


def log_evaluation(ref: RunRef, metrics: Mapping[str, float], files: str | Path, folder: str) -> None:
    """Record an evaluation with the run that made the model; repeating this does not duplicate it.

    Args:
        ref: the run.
        metrics: headline numbers by name.
        files: folder with the tables and pictures.
        folder: artifact folder of the run for these files.

    Raises:
        BadRequestError: the store cannot be reached or refuses the request.
    """
    from mlflow.entities import Metric

    api, now = client(ref.tracking_uri), int(time.time() * 1000)
    with plain_errors(ref.tracking_uri, "cannot record the evaluation, run the command again"):
        known = api.get_run(ref.run_id).data.metrics
        fresh = [Metric(key, value, now, 0) for key, value in metrics.items() if key not in known]
        if fresh:
            api.log_batch(ref.run_id, metrics=fresh)
        api.log_artifacts(ref.run_id, str(files), folder)


def send_unsent(ref: RunRef, home: str, tell: Callable[[str], None]) -> None:
    """Send records that a logger left in the run's folder; records that still cannot be sent stay there.

    Args:
        ref: the run.
        home: URI of the run's folder.
        tell: function that receives lines for the user.
    """
    folder = Outbox(home, ref.run_id).folder
    if folders.list_files(folder):
        RunLogger(ref, home=home, tell=tell).close()
        if not folders.list_files(folder):
            tell(f"what waited in {folder} is sent")


def flatten(values: Mapping[str, object], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted path, text) of every leaf; strings are unchanged, other values become JSON."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value if isinstance(value, str) else json.dumps(value)


def code_revision() -> dict[str, str]:
    """Return the code version as tags: commit and dirtiness of a checkout, or the version of the installed package."""
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists() and (root / "pyproject.toml").exists():
        try:
            commit = _git(root, "rev-parse", "HEAD")
            dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
        except (OSError, subprocess.SubprocessError):
            pass  # no git program, or another user's checkout: the package version still holds
        else:
            return {"mlflow.source.git.commit": commit, "code.revision": commit, "code.dirty": str(dirty).lower()}
    try:
        return {"code.version": importlib.metadata.version("blind-sr")}
    except importlib.metadata.PackageNotFoundError:
        return {"code.version": "unknown"}


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def _experiment(uri: str, name: str) -> str:
    """Return the id of the experiment, which is created if it does not exist, possibly by another process."""
    from mlflow.exceptions import MlflowException

    api, root = client(uri), artifact_root(uri)
    found = api.get_experiment_by_name(name)
    if found is None:
        try:
            return str(api.create_experiment(name, artifact_location=str(root) if root else None))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = api.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise BadRequestError(
            f"experiment '{name}' was deleted; choose another tracking.experiment, or run 'mlflow experiments restore'"
        )
    return str(found.experiment_id)


def _earlier_run(uri: str, run_id: str | None) -> Any:  # noqa: ANN401 - mlflow.entities.Run, imported late
    """Return the run from before a resume; None if it was deleted or recorded in another store."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        run = client(uri).get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        run = None
    if run is None or run.info.lifecycle_stage != "active":
        _log.warning("run %s is not in %s any more; a new one is opened", run_id, mask_text(uri))
        return None
    return run


def _orphan(uri: str, experiment: str, key: str) -> Any:  # noqa: ANN401 - as above
    """Return a run of this key that is still RUNNING without metrics; close runs with metrics as KILLED."""
    api = client(uri)
    query = f"attributes.status = 'RUNNING' and {clause(f'tags.`{RUN_KEY}`', key)}"
    empty = None
    for run in api.search_runs([_experiment(uri, experiment)], filter_string=query):
        if run.data.tags[RUN_KEY] != key:
            continue
        if run.data.metrics or empty is not None:
            api.set_terminated(run.info.run_id, "KILLED")
        else:
            empty = run
    return empty


def _log_batches(
    uri: str, run_id: str, params: Mapping[str, str] | None = None, tags: Mapping[str, str] | None = None
) -> None:
    """Log all params and tags in as few requests as the server's limit allows."""
    from mlflow.entities import Param, RunTag

    api = client(uri)
    items: list[Param | RunTag] = [Param(k, v) for k, v in (params or {}).items()]
    items += [RunTag(k, v) for k, v in (tags or {}).items()]
    for start in range(0, len(items), _PARAMS_PER_REQUEST):
        part = items[start : start + _PARAMS_PER_REQUEST]
        some_params = [item for item in part if isinstance(item, Param)]
        api.log_batch(run_id, params=some_params, tags=[item for item in part if isinstance(item, RunTag)])
