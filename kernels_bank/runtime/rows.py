"""Rows out of a Ray Data graph, with a user's mistake told as one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import ray.data
from ray.exceptions import RayTaskError

from kernels_bank.runtime import local_ray
from kernels_bank.runtime.errors import BadRequestError, JobFailedError


def rows_of(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Yield all rows as they come. Raises the error of ours that a task raised, without Ray's traceback around it."""
    prepare(dataset)
    with plain_errors():
        yield from dataset.iter_rows()


def prepare(dataset: ray.data.Dataset) -> None:
    """Let the errors of a dataset's tasks through as they were raised, and start nothing for statistics in our own Ray.

    Ray Data would turn the errors into text.
    """
    dataset.context.raise_original_map_exception = True
    leave_out_statistics()


def leave_out_statistics() -> None:
    """Keep Ray Data, in a Ray of our own, from starting a process that gathers statistics for the dashboard.

    A Ray of our own has no dashboard, and the process takes two seconds of CPU.
    """
    if local_ray.is_alone():
        from ray.data._internal import stats

        stats.get_or_create_stats_actor = _NoStatistics  # type: ignore[assignment]


class _NoStatistics:
    """Take what Ray Data calls on its actor of statistics, and do nothing."""

    def __getattr__(self, _name: str) -> _NoStatistics:
        return self

    def remote(self, *_: object, **__: object) -> None:
        """Ignore the call."""


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raise the error of ours inside a Ray error instead of it."""
    try:
        yield
    except RayTaskError as error:
        cause: BaseException | None = error
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, BadRequestError | JobFailedError):
            # Ours are one line; what follows is Ray's advice on retries.
            raise type(cause)(str(cause).splitlines()[0]) from None
        raise
