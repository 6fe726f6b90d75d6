"""Rows of a Ray Data graph, with a user's mistake reported in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import ray.data
from ray.exceptions import RayTaskError

from kernels_bank.runtime import local_ray
from kernels_bank.runtime.errors import BadRequestError, JobFailedError


def rows_of(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Yield all rows as they arrive. Raises a task's error of ours itself, without Ray's traceback around it."""
    prepare(dataset)
    with plain_errors():
        yield from dataset.iter_rows()


def prepare(dataset: ray.data.Dataset) -> None:
    """Let errors of a dataset's tasks pass unchanged, and start no statistics process in a private Ray.

    By default Ray Data would turn the errors into text.
    """
    dataset.context.raise_original_map_exception = True
    leave_out_statistics()


def leave_out_statistics() -> None:
    """Keep Ray Data from starting a process that gathers statistics for the dashboard in a private Ray.

    A private Ray has no dashboard, and the process takes two seconds of CPU.
    """
    if local_ray.is_alone():
        from ray.data._internal import stats

        stats.get_or_create_stats_actor = _NoStatistics  # type: ignore[assignment]


class _NoStatistics:
    """Accept all calls of Ray Data to its statistics actor, and do nothing."""

    def __getattr__(self, _name: str) -> _NoStatistics:
        return self

    def remote(self, *_: object, **__: object) -> None:
        """Ignore the call."""


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raise an error of ours that is inside a Ray error instead of the Ray error."""
    try:
        yield
    except RayTaskError as error:
        cause: BaseException | None = error
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, BadRequestError | JobFailedError):
            # Our errors are one line; further lines are Ray's advice on retries.
            raise type(cause)(str(cause).splitlines()[0]) from None
        raise
