"""The connection to Ray: an existing cluster when there is one, else a local one for this process."""

from __future__ import annotations

import logging
import os
import socket

from kernels_bank.runtime.errors import BadRequestError, JobFailedError

# Read by ray at import or by its workers at start, so they are set before `import ray`.
_SETTINGS = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # How often Ray Train asks its workers for news. Until it does, a checkpoint does not count and the next one waits.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
# Of a Ray that has this machine alone: nobody takes its nodes away, so nothing has to watch for that.
_LOCAL_SETTINGS = {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def connect(*, min_cpus: int = 2, verbose: bool = False) -> None:
    """Connect to the cluster of `RAY_ADDRESS` (set inside every Ray job), else start a local Ray.

    A local Ray gets at least `min_cpus` logical CPUs, so that data tasks and training workers fit side by side
    on a small machine. Token authentication is set explicitly (Ray turns it on for local clusters by itself):
    the local cluster listens on loopback and lives as long as this process. Does nothing when connected.

    Raises:
        BadRequestError: nothing answers at `RAY_ADDRESS`.
        JobFailedError: a local Ray did not come up in time.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return
    level = logging.INFO if verbose else logging.ERROR
    if not verbose:
        # What a node says of a process that it lost Ray prints whatever `log_to_driver` says, on standard output.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
    if address := os.environ.get("RAY_ADDRESS"):
        _check_answers(address)
        ray.init(logging_level=level, log_to_driver=verbose)
    else:
        for name, value in _LOCAL_SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            ray.init(
                address="local",
                num_cpus=max(min_cpus, os.cpu_count() or 1),
                include_dashboard=False,
                logging_level=level,
                log_to_driver=verbose,
            )
        except Exception as error:  # Ray raises nothing more specific
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise JobFailedError(f"Ray did not start on this machine, run the command again: {reason}") from error
    quiet_data(verbose=verbose)


def quiet_data(*, verbose: bool = False) -> None:
    """Silence Ray Data's own bars and plan prints in this process: jobs show their own progress."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = verbose
    context.print_on_execution_start = verbose
    if not verbose:
        # An error in a task is raised to the job, which says it in a line; the log would say it in pages, twice.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _check_answers(address: str) -> None:
    """A look at `host:port` first: Ray itself waits without end for a cluster that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadRequestError(
            f"RAY_ADDRESS {address}: no Ray cluster answers there ({reason}); start it or unset the variable"
        ) from error
