"""The pictures of a kernel bank in a tracking run."""

from __future__ import annotations

import os
from pathlib import Path

from kernels_bank.preview import PICTURES
from kernels_bank.runtime import scratch, storage, uris
from pipeline.tracking.store import RunRef, client, plain_errors, tracking_uri


def active_run(output: str) -> RunRef | None:
    """Return the run named by MLflow's own variable MLFLOW_RUN_ID, or None if it is not set.

    Raises:
        BadRequestError: there is no such run, or its store cannot be reached.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return None
    uri = tracking_uri(output)
    api = client(uri)
    with plain_errors(uri, f"cannot find run {run_id} of MLFLOW_RUN_ID"):
        api.get_run(run_id)
    return RunRef(run_id, uri)


def log_bank(ref: RunRef, bank: str) -> None:
    """Log the bank's pictures and its manifest to the run, in the folder `kernels`.

    Raises:
        BadRequestError: the store cannot be reached or refuses the request.
    """
    api = client(ref.tracking_uri)
    with scratch.temporary("pictures") as folder, plain_errors(ref.tracking_uri, f"cannot log the pictures of {bank}"):
        for name in (*PICTURES, "manifest.json"):
            if storage.exists(uris.join(bank, name)):
                Path(folder, name).write_bytes(storage.read_bytes(uris.join(bank, name)))
        api.log_artifacts(ref.run_id, str(folder), "kernels")
