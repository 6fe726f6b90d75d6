"""The connection to Ray: an existing cluster if there is one, otherwise a local Ray for this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from kernels_bank.runtime import local_ray, watch
from kernels_bank.runtime.address import address_here, check_address
from kernels_bank.runtime.cpus import usable_cpus
from kernels_bank.runtime.errors import BadRequestError

# Ray reads these at import and its workers at start, so they are set before `import ray`.
_SETTINGS = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def connect(*, min_cpus: int = 2, verbose: bool = False, environment: Mapping[str, str] | None = None) -> None:
    """Connect to the cluster of `RAY_ADDRESS` (set inside every Ray job), or start a private Ray for this process.

    A private Ray gets the CPUs that this process may use, and at least `min_cpus` logical CPUs, so that data tasks and
    training workers fit together on a small machine. An existing cluster keeps its mode of authentication. From then
    on a watch raises `watch.RayDiedError` in the main thread if Ray dies. If already connected, nothing happens.

    Args:
        min_cpus: smallest number of logical CPUs of a private Ray.
        verbose: whether to show the log of Ray and its workers.
        environment: variables of this job's workers on an existing cluster; workers of a private Ray inherit all.

    Raises:
        BadRequestError: no Ray cluster answers at `RAY_ADDRESS`, or it refuses us.
        JobFailedError: a private Ray did not start.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return
    level = logging.INFO if verbose else logging.ERROR
    if not verbose:
        # Ray prints a node's messages about lost processes to standard output, whatever `log_to_driver` is.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address in ("", "local"):
        local_ray.start(max(min_cpus, usable_cpus()), logging_level=level, log_to_driver=verbose)
        watch.watch_processes(local_ray.started)
    else:
        if address == "auto":
            address = address_here()
        else:
            check_address(address)
        _join(address, level, verbose=verbose, environment=environment)
    quiet_data(verbose=verbose)


def _join(address: str, level: int, *, verbose: bool, environment: Mapping[str, str] | None) -> None:
    """Connect to an existing cluster without changing it."""
    import ray

    runtime_env = {"env_vars": dict(environment)} if environment else None  # merged with that of a submitted job
    try:
        with local_ray.own_sigterm():
            ray.init(address=address, logging_level=level, log_to_driver=verbose, runtime_env=runtime_env)
    except Exception as error:  # Ray's errors: other versions, no node of the cluster on this machine
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadRequestError(f"RAY_ADDRESS {address}: cannot join the Ray cluster: {reason[:400]}") from error
    node = ray._private.worker._global_node
    if node is not None:  # None through Ray's client server
        host, _, port = node.gcs_address.rpartition(":")
        watch.watch_cluster((host.strip("[]"), int(port)), (node.node_ip_address, node.node_manager_port))


def quiet_data(*, verbose: bool = False) -> None:
    """Suppress Ray Data's own bars and plan prints in this process: jobs show their own progress."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = verbose
    context.print_on_execution_start = verbose
    if not verbose:
        # An error in a task is raised in the job, which prints it in one line; the log would print pages, twice.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
