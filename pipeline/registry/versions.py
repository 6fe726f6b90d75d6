"""The model registry: a version is made of a model folder, found by name and alias, and checked after download.

A version is a models-from-code pyfunc: `MLmodel`, the wrapper's source, `README.md` and the model folder's own files
(safetensors and JSON) under `artifacts/model/`. Nothing in it is pickled.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernels_bank.runtime import scratch
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.redact import mask
from pipeline.model_folder import CODEC, check_folder, read_manifest
from pipeline.names import LEASE, check_alias, check_model_name
from pipeline.registry import package
from pipeline.registry.package import CONFIG, DIGEST, FILES, INPUT, METRIC
from pipeline.tracking.sqlite import sqlite_path
from pipeline.tracking.store import RunRef, checked_uri, clause, client, is_final, plain_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

_DEFAULT_STORE = "runs/mlflow.db"
_DIGITS = 9  # most digits of a version; databases and the server's protocol use 32 bits


@dataclass(frozen=True)
class Version:
    """Describe one version of a registered model."""

    name: str
    number: int
    aliases: tuple[str, ...]
    created: int  # ms since 1970
    run_id: str
    tags: Mapping[str, str]
    description: str

    @property
    def uri(self) -> str:
        """Return the URI of the version."""
        return f"models:/{self.name}/{self.number}"

    @property
    def metrics(self) -> dict[str, float]:
        """Return the stored evaluation: `psnr.<protocol>...` and the like."""
        return {k.removeprefix(METRIC): float(v) for k, v in self.tags.items() if k.startswith(METRIC)}


def store_uri(given: str | None = None) -> str:
    """Return the store for look-ups of models: the given one, `MLFLOW_TRACKING_URI`, or `runs/mlflow.db`.

    Raises:
        BadRequestError: the SQLite file does not exist, or neither a server nor an SQLite file is named.
    """
    uri = checked_uri(given or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_DEFAULT_STORE}")
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        raise BadRequestError(
            f"no registry: {database} is not there; set MLFLOW_TRACKING_URI (or --tracking-uri) to an mlflow "
            "server or to sqlite:///DIR/mlflow.db"
        )
    return uri


def check_names(name: str, alias: str) -> None:
    """Raise BadRequestError if the registry would refuse a model's name or an alias."""
    try:
        check_model_name(name)
        check_alias(alias)
    except ValueError as error:
        raise BadRequestError(str(error)) from error


def register(
    run: RunRef, model_dir: str | Path, name: str, alias: str, metrics: Mapping[str, float], tags: Mapping[str, str]
) -> int:
    """Make a model folder the newest version of `name` and point `alias` at it.

    A folder that is registered again from the same run is not duplicated.

    Args:
        run: the run that made it; the version links to it.
        model_dir: local folder written by `pipeline.model.weights.save_model`, which is checked first. A `picture.png`
            in it is shown on the model card.
        name: name of the registered model, which is created if it does not exist.
        alias: such as `candidate`.
        metrics: evaluation by protocol, `psnr.<protocol>...`; more can be added with `add_metrics`.
        tags: digests of shards and bank, code revision and the like.

    Returns:
        The version's number.

    Raises:
        ArtefactError: a file of the folder is missing or differs from its digest in `model.json`, the tensors do not
            fit the network, or a weight is not finite.
        BadRequestError: the name or the alias is invalid, or the store cannot be reached or refuses the request.
    """
    from pipeline.model.weights import load_model

    check_names(name, alias)
    folder, uri = Path(model_dir), run.tracking_uri
    digest = check_folder(folder)
    for weights in read_manifest(folder).sha256.keys() - {CODEC}:
        load_model(folder, weights)
    api = client(uri)
    with plain_errors(uri, f"cannot register '{name}'"):
        number = _already(api, name, run.run_id, digest)
        if number is None:
            origin = api.get_run(run.run_id)
            inherited = {k: v for k, v in origin.data.tags.items() if k.startswith("code.")}
            own = {k: mask(k, v) for k, v in {**inherited, **tags}.items()}
            own |= {f"{METRIC}{key}": repr(float(value)) for key, value in metrics.items()}
            manifest = read_manifest(folder)
            own |= {
                DIGEST: digest,
                CONFIG: json.dumps(manifest.config.model_dump(mode="json"), sort_keys=True),
                INPUT: json.dumps(package.requirements(manifest, origin.data.params)),
            }
            number = _create_version(api, origin, folder, name, own)
        api.set_registered_model_alias(name, alias, str(number))
    return number


def add_metrics(uri: str, name: str, version: int, metrics: Mapping[str, float]) -> None:
    """Store an evaluation with a version, for `promote` and `compare`.

    Args:
        uri: tracking URI.
        name: name of the model.
        version: number of the version.
        metrics: metrics by name.

    Raises:
        BadRequestError: there is no such version, or the store cannot be reached.
    """
    api = client(uri)
    with plain_errors(uri, f"cannot store metrics of {name} version {version}"):
        for key, value in metrics.items():
            api.set_model_version_tag(name, str(version), f"{METRIC}{key}", repr(float(value)))


def find(uri: str, tracking_uri: str | None = None) -> Version:
    """Find the version that a `models:/` URI names. Raises BadRequestError if there is none."""
    form = re.fullmatch(r"(?:models:/)?([^/@:]+)(?:@([^/@]+)|/(\d+))", uri)
    if form is None:
        raise BadRequestError(f"model '{uri}': write models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = form.groups()
    if number is not None and len(number) > _DIGITS:
        raise BadRequestError(f"model '{uri}': no version has a number of {len(number)} digits")
    where = store_uri(tracking_uri)
    api = client(where)
    try:
        with plain_errors(where, f"cannot look up '{uri}'"):
            found = api.get_model_version_by_alias(name, alias) if alias else api.get_model_version(name, number)
    except BadRequestError as error:
        if not is_final(error.__cause__):
            raise
        aliases = aliases_of(name, where)  # lists the existing models if this one does not exist
        if alias is not None:
            known = ", ".join(f"{a} (version {n})" for a, n in sorted(aliases.items())) or "none"
            raise BadRequestError(f"model '{name}' has no alias '{alias}'; it has: {known}") from error
        known = ", ".join(str(v.number) for v in list_versions(name, where)) or "none"
        raise BadRequestError(f"model '{name}' has no version {number}; it has: {known}") from error
    return _version(found, {held: int(found.version) for held in found.aliases})


def list_models(tracking_uri: str) -> list[str]:
    """List the names of all registered models, sorted."""
    api = client(tracking_uri)
    with plain_errors(tracking_uri, "cannot list models"):
        return sorted(model.name for model in pages(api.search_registered_models) if not model.name.endswith(LEASE))


def list_versions(name: str, tracking_uri: str) -> list[Version]:
    """List all versions of a model, newest first. Raises BadRequestError if the model does not exist."""
    aliases = aliases_of(name, tracking_uri)
    api = client(tracking_uri)
    with plain_errors(tracking_uri, f"cannot list versions of '{name}'"):
        versions = [_version(item, aliases) for item in _versions(api, name)]
    return sorted(versions, key=lambda version: -version.number)


def aliases_of(name: str, tracking_uri: str) -> dict[str, int]:
    """Return alias -> version of a model. Raises BadRequestError, which lists the known models, if it is missing."""
    from mlflow.exceptions import MlflowException

    api = client(tracking_uri)
    try:
        with plain_errors(tracking_uri, f"cannot look up model '{name}'"):
            return {alias: int(number) for alias, number in api.get_registered_model(name).aliases.items()}
    except BadRequestError as error:
        cause = error.__cause__
        if isinstance(cause, MlflowException) and cause.error_code == "RESOURCE_DOES_NOT_EXIST":
            known = ", ".join(list_models(tracking_uri)) or "none"
            raise BadRequestError(f"no model '{name}' in the registry; it has: {known}") from error
        raise


def pages(search: Any) -> list[Any]:  # noqa: ANN401 - MLflow's searches share no type
    """Collect all results of a paginated search."""
    found, token = [], None
    while True:
        page = search(page_token=token)
        found += page
        if not (token := page.token):
            return found


def _versions(api: MlflowClient, name: str) -> list[ModelVersion]:
    """Return all versions of a model, in MLflow's order."""
    found = pages(lambda page_token: api.search_model_versions(clause("name", name), page_token=page_token))
    return [version for version in found if version.name == name]


def _already(api: MlflowClient, name: str, run_id: str, digest: str) -> int | None:
    """Return the version that this run registered from this folder before a kill, if there is one."""
    numbers = [int(v.version) for v in _versions(api, name) if v.run_id == run_id and v.tags.get(DIGEST) == digest]
    return max(numbers, default=None)


def _create_version(api: MlflowClient, origin: Run, folder: Path, name: str, tags: Mapping[str, str]) -> int:
    """Store the pyfunc as a logged model of the run and make it a version."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    run_id = origin.info.run_id
    # A logged model's name is limited to fewer characters than a registered model's, but is found by its id.
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    stored = api.create_logged_model(origin.info.experiment_id, name=plain, source_run_id=run_id, model_type="blind-sr")
    with scratch.temporary("model") as temporary:
        target = package.write(temporary, stored, origin, folder, name, tags)
        api.log_model_artifacts(stored.model_id, str(target))
    api.finalize_logged_model(stored.model_id, "READY")
    api.log_outputs(run_id, [LoggedModelOutput(stored.model_id, step=0)])
    try:
        api.create_registered_model(name)
        is_new = True
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        is_new = False
    try:
        # The location itself, since MLflow would look `models:/<id>` up in its global store instead of this one.
        made = api.create_model_version(
            name,
            stored.artifact_location,
            run_id=run_id,
            tags={**tags, FILES: stored.model_id},
            description=package.summary(read_manifest(folder), tags),
            model_id=stored.model_id,
        )
    except MlflowException as error:
        if is_new and is_final(error):
            api.delete_registered_model(name)  # a refusal must not leave a model without versions
        raise
    return int(made.version)


def _version(item: ModelVersion, aliases: Mapping[str, int]) -> Version:
    number = int(item.version)
    return Version(
        name=item.name,
        number=number,
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == number)),
        created=int(item.creation_timestamp),
        run_id=item.run_id or "",
        tags=dict(item.tags),
        description=item.description or "",
    )
