"""Messages to the user about failed workers."""

from __future__ import annotations

import re
from typing import Any

import ray.train


class ReportWorkerFailures(ray.train.UserCallback):
    """Tell the user that Ray Train replaced lost workers, and why, since Ray Train does so silently."""

    def __init__(self, channel: Any) -> None:  # noqa: ANN401 - an actor handle
        self._channel = channel

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ANN401
        """Record the failure; the controller calls this."""
        reason = failure_reason(worker_exceptions)
        self._channel.failed.remote(reason)


def failure_reason(failures: dict[int, Exception]) -> str:
    """Return the first error by rank in one line; the whole traceback is in the worker's log."""
    rank, error = min(failures.items())
    error = getattr(error, "health_check_failure", error)  # why Ray Train lost touch with the worker
    lines = str(error).strip().splitlines()
    # An error of the training function comes as its traceback, whose last line begins with the error's class. Ray's
    # message about a lost process begins with the cause and ends with links to its manual.
    told = (lines[-1] if lines[0].startswith("Traceback") else lines[0]) if lines else ""
    found = re.match(r"(?:\w+\.)*(\w+(?:Error|Exception)): (.*)", told)
    kind, text = (found[1], found[2]) if found else (type(error).__name__, told)
    ours = {"BadRequestError", "ArtefactError", "UnavailableError", "DamagedError", "JobFailedError"}
    return f"worker {rank}: " + (text if kind in ours else f"{kind}: {text}" if text else kind)
