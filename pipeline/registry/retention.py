"""Selection and deletion of versions that are no longer needed."""

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
    """Find versions of a model that may be deleted: without alias, not the target of a rollback, and old enough.

    Args:
        uri: tracking URI.
        name: name of the registered model.
        keep: number of newest versions that are always kept.
        older_than_days: age in days below which versions are always kept.

    Raises:
        BadRequestError: there is no such model, or the store cannot be reached.
    """
    listed, aliases = versions.list_versions(name, uri), versions.aliases_of(name, uri)
    numbers = [v.number for v in listed]
    wanted = {earlier_holder(history(listed, alias), held, numbers) for alias, held in aliases.items()}
    before = time.time() * 1000 - older_than_days * _DAY_MS
    return outdated(listed, wanted | set(aliases.values()), keep, before)


def outdated(listed: Sequence[Version], wanted: Collection[int | None], keep: int, before: float) -> list[Version]:
    """Find versions after the first `keep` that were made before a time and are not wanted.

    Args:
        listed: versions, newest first.
        wanted: numbers of versions to keep.
        keep: number of newest versions to keep.
        before: ms since 1970.
    """
    return [v for v in listed[keep:] if v.created < before and v.number not in wanted]


def delete_spare(uri: str, name: str, *, keep: int, older_than_days: float) -> list[Version]:
    """Delete the versions from `spare` while no alias can move; return them. Raises BadRequestError as `spare` does.

    The files are marked as deleted; `mlflow gc` then frees the disk.

    Args:
        uri: tracking URI.
        name: name of the registered model.
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
