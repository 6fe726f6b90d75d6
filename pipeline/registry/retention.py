"""Which versions nobody needs any more, and how they are deleted."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from pipeline.registry import versions
from pipeline.registry.lease import exclusive
from pipeline.registry.package import FILES
from pipeline.registry.promotion import earlier_holder, history
from pipeline.registry.versions import Version
from pipeline.tracking.store import client, plain_errors

_DAY_MS = 86_400_000


def spare(uri: str, name: str, *, keep: int, older_than_days: float) -> list[Version]:
    """Find versions of a model that may go: no alias, not what a rollback would take, neither new nor recent.

    Args:
        uri: tracking URI.
        name: of the registered model.
        keep: the newest so many always stay.
        older_than_days: younger ones always stay.

    Raises:
        BadRequestError: no such model, or the store cannot be reached.
    """
    listed, aliases = versions.list_versions(name, uri), versions.aliases_of(name, uri)
    numbers = [v.number for v in listed]
    wanted = {earlier_holder(history(listed, alias), held, numbers) for alias, held in aliases.items()}
    before = time.time() * 1000 - older_than_days * _DAY_MS
    return outdated(listed, wanted | set(aliases.values()), keep, before)


def outdated(listed: Sequence[Version], wanted: Collection[int | None], keep: int, before: float) -> list[Version]:
    """Find versions behind the first `keep`, made before a time, and not wanted.

    Args:
        listed: newest first.
        wanted: numbers that stay.
        keep: how many of the newest stay.
        before: ms since 1970.
    """
    return [v for v in listed[keep:] if v.created < before and v.number not in wanted]


def delete_spare(uri: str, name: str, *, keep: int, older_than_days: float) -> list[Version]:
    """Delete what `spare` finds while no alias can move; return it. Raises BadRequestError as `spare` does.

    The files are marked as deleted; `mlflow gc` then frees the disk.

    Args:
        uri: tracking URI.
        name: of the registered model.
        keep: the newest so many always stay.
        older_than_days: younger ones always stay.
    """
    api = client(uri)
    with exclusive(uri, name) as lease:
        found = spare(uri, name, keep=keep, older_than_days=older_than_days)
        for version in found:
            with plain_errors(uri, f"cannot delete {version.uri}"):
                lease.check()
                api.delete_model_version(name, str(version.number))
                if files := version.tags.get(FILES):
                    api.delete_logged_model(files)
    return found
