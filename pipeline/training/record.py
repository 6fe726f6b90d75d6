"""The record of a run, `run.json` in its folder: the owner of the folder, and whether the run may be resumed."""

from __future__ import annotations

import itertools
import sys
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from kernels_bank.runtime import folders, storage, uris
from kernels_bank.runtime.errors import ArtefactError, BadRequestError, UnavailableError
from pipeline.config import MAY_CHANGE, RunConfig, ShardSetConfig
from pipeline.frozen import Frozen
from pipeline.model_folder import first_problem

_BYTES = 1 << 20
KIND, RECORD = "training run", "run.json"
_NAMES = (RECORD, "checkpoints", "model", "unsent")  # what a run writes into its folder; other files may exist there


class RunRecord(Frozen):
    """Hold the content of `run.json` in the run's folder."""

    config: RunConfig
    digests: dict[str, str]
    run_id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    finished: int | None = None  # steps
    version: int | None = None


def names_without_mark(home: str) -> tuple[str, ...]:
    """List the names that a run's folder without a mark may not have; none if a valid record serves as the mark."""
    where = uris.join(home, RECORD)
    try:
        found = storage.read_json(where, limit=_BYTES) if storage.exists(where) else None
        RunRecord.model_validate(found)
    except UnavailableError:
        raise
    except (ArtefactError, ValidationError):
        return _NAMES
    return ()


def put_aside(home: str) -> None:
    """Move the files of an earlier run from its folder to another. Only the holder of the folder's lock may do so."""
    there = [name for name in _NAMES if storage.exists(uris.join(home, name))]
    if not there:
        return
    number = next(n for n in itertools.count(1) if not storage.exists(f"{home}.{n}"))
    kept = f"{home}.{number}"
    for name in there:
        if name != RECORD:
            folders.move_folder(uris.join(home, name), uris.join(kept, name))
    if RECORD in there:  # last: while the record exists, the run has not been put aside
        storage.write_bytes(uris.join(kept, RECORD), storage.read_bytes(uris.join(home, RECORD)))
        storage.remove_file(uris.join(home, RECORD))
    print(f"the earlier run is kept in {kept}", file=sys.stderr, flush=True)


def earlier(home: str, config: RunConfig, digests: dict[str, str], *, changed: bool) -> dict:
    """Return the record of a run of this name, or an empty one. Refuse to resume with settings that would mix two runs.

    With `changed`, only changes that need another network or optimizer are refused.

    Args:
        home: the run's folder.
        config: present configuration of the run.
        digests: present digests of shards and bank.
        changed: whether changes are allowed.
    """
    where = uris.join(home, RECORD)
    if not storage.exists(where):
        return {}
    try:
        kept = RunRecord.model_validate(storage.read_json(where, limit=_BYTES))
    except UnavailableError:
        raise
    except (ArtefactError, ValidationError) as error:
        problem = f"{where}: {first_problem(error)}" if isinstance(error, ValidationError) else str(error)
        raise ArtefactError(f"{problem}; start afresh with --resume never") from error
    record, before = kept.model_dump(mode="json", exclude_none=True), kept.config
    free = free_fields(RunConfig)
    found = _differences(before.model_dump(exclude=free), config.model_dump(exclude=free))
    different = [name for name in digests if record["digests"].get(name) != digests[name]]
    found += [f"{name} digest" for name in different if name != "shards"]
    if "shards" in different:
        was, now = (_listed(one.data.shard_sets) for one in (before, config))
        found.append(f"data.shards: {was} -> {now}" if was != now else "shards digest")
    if changed:
        found = [difference for difference in found if difference.startswith(("model.", "train.learn:"))]
    if found:
        raise BadRequestError(
            f"run '{config.name}' exists in {home} with other settings ({', '.join(found)}); choose another name, "
            f"or start afresh with --resume never{'' if changed else ', or go on all the same with --resume changed'}"
        )
    return record | {"version": kept.version}


def _listed(sets: tuple[ShardSetConfig, ...]) -> str:
    return " + ".join(f"{one.weight:g} x {one.uri}" if one.weight != 1 else one.uri for one in sets)


def free_fields(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the settings that may change when a run is resumed, in the form of pydantic's `exclude`."""
    found: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if field.json_schema_extra == MAY_CHANGE:
            found[name] = True
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found[name] = free_fields(field.annotation)
    return {name: inner for name, inner in found.items() if inner}


def _differences(before: dict, now: dict, path: str = "") -> list[str]:
    found = []
    for key in before.keys() | now.keys():
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{path}{key}.")
        elif old != new:
            found.append(f"{path}{key}: {old} -> {new}")
    return sorted(found)
