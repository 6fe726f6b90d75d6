"""The registry's commands: each class holds the arguments; its `answer` runs the command and returns plain data.

Importing this module does not import mlflow.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import CliPositionalArg

from kernels_bank.runtime import uris
from kernels_bank.runtime.errors import BadRequestError
from pipeline.frozen import Frozen
from pipeline.model_config import nested
from pipeline.names import Alias, ModelName
from pipeline.registry import versions
from pipeline.registry.package import CONFIG, DIGEST, INPUT, PROMOTED, is_origin
from pipeline.registry.versions import Version
from pipeline.tracking.sqlite import prepare_store
from pipeline.tracking.store import checked_uri, tracking_uri

Answer = dict[str, Any] | list[dict[str, Any]]
_VERSION = "NAME@ALIAS or NAME/VERSION"


class Request(Frozen):
    """Hold what every command takes."""

    tracking_uri: str | None = Field(
        None, description="mlflow server or sqlite:///DIR/mlflow.db; else MLFLOW_TRACKING_URI, else runs/mlflow.db"
    )
    as_json: bool = Field(False, alias="json", description="print JSON instead of a table")

    def store(self) -> str:
        """Return the tracking URI to use. Raises BadRequestError if there is no store."""
        return versions.store_uri(self.tracking_uri)


class ListModels(Request):
    """List the registered models."""

    def answer(self) -> Answer:
        """List one entry for each model."""
        store = self.store()
        found = []
        for name in versions.list_models(store):
            of_model = versions.list_versions(name, store)
            newest = of_model[0] if of_model else None
            found.append(
                {
                    "name": name,
                    "versions": len(of_model),
                    "newest": newest.number if newest else None,
                    "created": _date(newest) if newest else None,
                    "aliases": versions.aliases_of(name, store),
                    "description": newest.description if newest else "",
                }
            )
        return found


class Show(Request):
    """Show a model with its versions and promotions, or all that is known of one version."""

    model: CliPositionalArg[str] = Field(description=f"NAME, {_VERSION}")

    def answer(self) -> Answer:
        """Describe the model, or the version."""
        store = self.store()
        if set("@/") & set(self.model):
            return described(versions.find(self.model, store))
        return {
            "name": self.model,
            "aliases": versions.aliases_of(self.model, store),
            "versions": [described(version) for version in versions.list_versions(self.model, store)],
        }


class Promote(Request):
    """Give an alias to a version, unless its stored evaluation is worse than the one of the version that has it."""

    name: CliPositionalArg[ModelName] = Field(description="registered model")
    version: CliPositionalArg[int] = Field(description="its version to promote")
    alias: Alias = "champion"
    tolerance: float = Field(0.05, ge=0, description="dB of PSNR by which it may be worse")
    force: str | None = Field(None, description="promote in spite of that; the reason is stored with the version")

    def answer(self) -> Answer:
        """Promote the version; return the recorded move, or that there was nothing to do."""
        from pipeline.registry.promotion import promote

        move = promote(self.store(), self.name, self.version, self.alias, tolerance=self.tolerance, force=self.force)
        where = {"name": self.name, "alias": self.alias, "version": self.version}
        return where | (asdict(move) if move else {"action": "none"})


class Rollback(Request):
    """Give an alias back to the version that had it before."""

    name: CliPositionalArg[ModelName] = Field(description="registered model")
    alias: Alias = "champion"

    def answer(self) -> Answer:
        """Roll the alias back; return the recorded move."""
        from pipeline.registry.promotion import rollback

        return {"name": self.name, "alias": self.alias} | asdict(rollback(self.store(), self.name, self.alias))


class Export(Request):
    """Write a version to a new directory: its model folder, or its restorer for runtimes without this program."""

    model: CliPositionalArg[str] = Field(description=_VERSION)
    output: Annotated[Path, BeforeValidator(uris.local)] = Field(description="directory to make, on this machine")
    form: Literal["folder", "torch-export", "onnx"] = Field(
        "folder", alias="format", description="weights, codec, model.json, README.md; or the restorer as .pt2 or .onnx"
    )
    scale: int | None = Field(None, description="of the .pt2 or .onnx; needed where the model has several")
    part: Literal["restorer", "initial-kernel"] = Field(
        "restorer", description="of the .pt2 or .onnx: what restores with a known kernel, or what estimates a first one"
    )

    def answer(self) -> Answer:
        """Export the version; return its place, and the largest difference of an exported file from the network."""
        store = self.store()
        if self.form != "folder":
            from pipeline.registry.exchange import export_as

            made = export_as(self.model, self.output, self.form, self.scale, store, part=self.part)
            return made | {"output": str(self.output)}
        from pipeline.registry.fetch import export

        if self.scale is not None or self.part != "restorer":
            raise BadRequestError("--scale and --part are for --format torch-export and onnx; a model folder has all")
        export(self.model, self.output, store)
        return {"model": versions.find(self.model, store).uri, "output": str(self.output)}


class ImportWeights(Request):
    """Register weights from elsewhere: the .pth of a published USRNet, or a model folder of this program."""

    file: CliPositionalArg[str] = Field(description=".pth, .safetensors or model folder; a path or s3://")
    name: ModelName = Field(description="registered model to add a version to; made when it is not there")
    alias: Alias = "candidate"

    def store(self) -> str:
        """Return the store, which is created if it does not exist."""
        store = checked_uri(self.tracking_uri) if self.tracking_uri else tracking_uri("runs")
        prepare_store(store)
        return store

    def answer(self) -> Answer:
        """Register the weights; return the version, and whether it is new."""
        from pipeline.registry.imports import import_weights

        store = self.store()
        version, is_new = import_weights(self.file, self.name, self.alias, store)
        return {"new": is_new} | described(versions.find(f"{self.name}/{version}", store))


class Compare(Request):
    """Put two versions side by side: evaluation, configuration, origin."""

    one: CliPositionalArg[str] = Field(description=_VERSION)
    other: CliPositionalArg[str] = Field(description="the same, also of another model")

    def answer(self) -> Answer:
        """Compare both versions: all metrics with differences, and all other differences."""
        store = self.store()
        one, other = described(versions.find(self.one, store)), described(versions.find(self.other, store))
        metrics = {}
        for key in sorted(one["metrics"].keys() | other["metrics"].keys()):
            values = [one["metrics"].get(key), other["metrics"].get(key)]
            metrics[key] = [*values, None if None in values else values[1] - values[0]]
        differing = {
            part: {
                key: [one[part].get(key), other[part].get(key)]
                for key in sorted(one[part].keys() | other[part].keys())
                if one[part].get(key) != other[part].get(key)
            }
            for part in ("config", "input", "origin")
        }
        same = one["digest"] == other["digest"]
        return {"one": one["uri"], "other": other["uri"], "same_files": same, "metrics": metrics, **differing}


class Gc(Request):
    """List versions that nobody needs (no alias, no way back, neither new nor recent); --delete deletes them."""

    name: CliPositionalArg[ModelName | None] = Field(None, description="registered model; all of them by default")
    keep: int = Field(5, ge=0, description="the newest versions of each model that always stay")
    older_than: float = Field(30.0, ge=0, description="days; younger versions always stay")
    delete: bool = Field(False, description="delete them; by default they are only listed")

    def answer(self) -> Answer:
        """Return the versions found and whether they were deleted."""
        from pipeline.registry.retention import delete_spare, spare

        store, find = self.store(), delete_spare if self.delete else spare
        names = [self.name] if self.name else versions.list_models(store)
        return [
            {"name": v.name, "version": v.number, "created": _date(v), "run_id": v.run_id, "deleted": self.delete}
            for name in names
            for v in find(store, name, keep=self.keep, older_than_days=self.older_than)
        ]


def described(version: Version) -> dict[str, Any]:
    """Describe a version with all data of the registry, without downloading files."""
    tags = version.tags
    moves = [json.loads(tags[key]) | {"alias": key.split(".")[1]} for key in sorted(tags) if key.startswith(PROMOTED)]
    return {
        "name": version.name,
        "version": version.number,
        "uri": version.uri,
        "aliases": list(version.aliases),
        "created": _date(version),
        "description": version.description,
        "run_id": version.run_id,
        "digest": tags.get(DIGEST),
        "input": json.loads(tags.get(INPUT, "{}")),
        "config": nested(json.loads(tags.get(CONFIG, "{}")))[0],
        "metrics": dict(sorted(version.metrics.items())),
        "origin": {key: tags[key] for key in sorted(tags) if is_origin(key)},
        "moves": moves,
    }


def _date(version: Version) -> str:
    return datetime.fromtimestamp(version.created / 1000, UTC).isoformat(timespec="seconds")
