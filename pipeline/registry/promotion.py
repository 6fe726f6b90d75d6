"""Moves of an alias through a gate, and back: `promote` compares stored evaluations, `rollback` reads the record.

Each move is recorded as a tag of the version that gets the alias, before the alias moves. `rollback` follows this
record back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.process import user_name
from kernels_bank.runtime.redact import mask_text
from pipeline.registry import versions
from pipeline.registry.fetch import download
from pipeline.registry.lease import Lease, exclusive
from pipeline.registry.package import PROMOTED
from pipeline.registry.versions import Version
from pipeline.tracking.store import client, plain_errors

_ROUNDING = 1e-9  # dB; decimal tolerances are not exact in binary


@dataclass(frozen=True)
class Move:
    """Record a move of an alias to a version."""

    number: int  # number of the move among those of the alias
    action: Literal["promote", "rollback"]
    version: int
    previous: int | None  # the version that had the alias before
    at: str  # ISO 8601, UTC
    by: str
    objections: tuple[str, ...]  # objections of the gate
    reason: str | None  # reason for overruling them


def promote(
    uri: str, name: str, version: int, alias: str = "champion", *, tolerance: float = 0.05, force: str | None = None
) -> Move | None:
    """Give `alias` to a version that is not worse than its present holder.

    The files of the version are downloaded and checked first. Concurrent promotions take turns.

    Args:
        uri: tracking URI.
        name: name of the registered model.
        version: version to promote.
        alias: usually `champion`.
        tolerance: dB of PSNR by which the version may be worse on any protocol.
        force: reason to promote it despite the gate, stored with the version.

    Returns:
        The recorded move; None if the version already has the alias.

    Raises:
        BadRequestError: the gate objects, there is no such version, or the store cannot be reached.
        ArtefactError: the version's files differ from those that were registered.
    """
    if force is not None and not force.strip():
        raise BadRequestError("--force needs a reason; it is stored with the version")
    versions.check_names(name, alias)
    download(f"models:/{name}/{version}", uri)
    with exclusive(uri, name) as lease:
        by_number = {v.number: v for v in versions.list_versions(name, uri)}
        if version not in by_number:
            raise BadRequestError(f"model '{name}' has no version {version} any more")
        previous = versions.aliases_of(name, uri).get(alias)
        if previous == version:
            return None
        champion = by_number[previous].metrics if previous in by_number else {}
        objections = objections_to(by_number[version].metrics, champion, tolerance)
        if objections and force is None:
            raise BadRequestError(
                f"{name} version {version} is not promoted over {alias} version {previous}: {'; '.join(objections)}; "
                f"evaluate it (python jobs/evaluate.py --model models:/{name}/{version} ...), raise --tolerance, "
                "or give a reason with --force"
            )
        reason = mask_text(force.strip()) if force is not None else None
        return _move(lease, uri, alias, by_number.values(), _record("promote", version, previous, objections, reason))


def rollback(uri: str, name: str, alias: str = "champion") -> Move:
    """Give `alias` back to the version that had it before; a second call goes back one version further.

    Raises:
        BadRequestError: no version has the alias, no earlier version is recorded or left, or the store cannot be
            reached.
    """
    with exclusive(uri, name) as lease:
        by_number = {v.number: v for v in versions.list_versions(name, uri)}
        current = versions.aliases_of(name, uri).get(alias)
        if current is None:
            raise BadRequestError(
                f"no version of model '{name}' has the alias '{alias}'; there is nothing to roll back"
            )
        earlier = earlier_holder(history(by_number.values(), alias), current, by_number)
        if earlier is None:
            raise BadRequestError(f"no version is recorded to have had the alias '{alias}' before version {current}")
        return _move(lease, uri, alias, by_number.values(), _record("rollback", earlier, current, (), None))


def objections_to(candidate: Mapping[str, float], champion: Mapping[str, float], tolerance: float) -> tuple[str, ...]:
    """List the reasons why a candidate should not replace a champion; empty if it may.

    The comparison uses the mean PSNR over the kernels, `psnr.<protocol>...<method>`, of every evaluation of the
    champion: that of its blind restoration, or of the non-blind one if there is no other.

    Args:
        candidate: metrics of the new version.
        champion: metrics of the present version.
        tolerance: dB by which the candidate may be worse.
    """
    scores = {key: value for key, value in champion.items() if key.startswith("psnr.") and not math.isnan(value)}
    decisive = [key for key in scores if key.endswith(".blind")] or [key for key in scores if key.endswith(".nonblind")]
    found = []
    for key in sorted(decisive):
        if key not in candidate:
            found.append(f"{key} is {scores[key]:.2f} dB and not evaluated for the candidate")
        # In this form, a candidate's NaN is an objection.
        elif not candidate[key] >= scores[key] - tolerance - _ROUNDING:
            found.append(f"{key} falls from {scores[key]:.2f} to {candidate[key]:.2f} dB")
    return tuple(found)


def history(versions: Iterable[Version], alias: str) -> list[Move]:
    """List the recorded moves of an alias, oldest first; moves to deleted versions are lost."""
    prefix = f"{PROMOTED}{alias}."
    texts = [text for version in versions for key, text in version.tags.items() if key.startswith(prefix)]
    moves = [json.loads(text) for text in texts]
    return sorted((Move(**{**move, "objections": tuple(move["objections"])}) for move in moves), key=lambda m: m.number)


def earlier_holder(moves: Sequence[Move], current: int, existing: Iterable[int]) -> int | None:
    """Find the version to roll back to from `current`.

    The moves are replayed as a stack: a promotion pushes, a rollback pops. If the record and the alias disagree (a move
    was killed after its record, or the alias was moved by hand), the alias is right.
    """
    stack: list[int] = []
    for move in moves:
        if move.previous is not None:
            _settle(stack, move.previous)
        if move.action == "promote" or move.version not in stack:
            stack.append(move.version)
        else:
            while stack[-1] != move.version:
                stack.pop()
    _settle(stack, current)
    left = set(existing) - {current}
    return next((version for version in reversed(stack) if version in left), None)


def _settle(stack: list[int], holder: int) -> None:
    """Make the true holder the top: as recorded, one step back (the last move did not happen), or moved by hand."""
    if len(stack) > 1 and stack[-1] != holder and stack[-2] == holder:
        stack.pop()
    elif not stack or stack[-1] != holder:
        stack.append(holder)


def _record(
    action: Literal["promote", "rollback"],
    version: int,
    previous: int | None,
    objections: tuple[str, ...],
    reason: str | None,
) -> Move:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Move(0, action, version, previous, now, user_name(), objections, reason)


def _move(lease: Lease, uri: str, alias: str, versions: Iterable[Version], move: Move) -> Move:
    """Record the move, then make it; the reverse order could lose the way back."""
    number = max((m.number for m in history(versions, alias)), default=0) + 1
    move = Move(**{**asdict(move), "number": number})
    api = client(uri)
    with plain_errors(uri, f"cannot move the alias '{alias}' of '{lease.name}'"):
        lease.check()
        tag = f"{PROMOTED}{alias}.{number:06d}"
        api.set_model_version_tag(lease.name, str(move.version), tag, json.dumps(asdict(move)))
        lease.check()
        api.set_registered_model_alias(lease.name, alias, str(move.version))
    return move
