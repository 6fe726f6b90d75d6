"""How a checkpoint gets into the run's folder: written beside, sent in the background, and never the only one.

A checkpoint counts once Ray Train has written it into its snapshot, a JSON file that names the checkpoints of a run.
"""

from __future__ import annotations

import json
import tempfile
import threading
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import CheckpointUploadMode

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import JobFailedError
from pipeline.training import checkpoint
from pipeline.training.board import say
from pipeline.training.learner import Learner

SNAPSHOT, COPY = "checkpoint_manager_snapshot.json", "snapshot-copy.json"
# Storage that is away is waited for (the filesystem of `launch.py` is a patient one); after this long we say so.
_SAY_AFTER_S = 30.0


def report(state: checkpoint.State, learner: Learner, metrics: dict[str, float], rank: int, board: Any) -> None:  # noqa: ANN401
    """Hand a checkpoint to Ray Train. Every rank reports (Ray Train counts them); only rank 0 writes.

    It is written to this machine's temporary folder at once and copied from there while training goes on; the end of
    the training function waits for all copies.
    """
    values = metrics | {"step": state.step, "score": state.score}
    if rank != 0:
        ray.train.report(values, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
        return
    folder = tempfile.mkdtemp(prefix="blindsr-checkpoint-")  # deleted once it is copied
    checkpoint.save(Path(folder), state, learner.network, learner.ema, learner.optimizer, learner.schedule)
    ray.train.report(
        values,
        checkpoint=ray.train.Checkpoint.from_directory(folder),
        checkpoint_dir_name=f"step-{state.step:08d}",
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        checkpoint_upload_fn=lambda local, name: _upload(local, name, board),
    )


def _upload(local: ray.train.Checkpoint, name: str, board: Any) -> ray.train.Checkpoint:  # noqa: ANN401
    """Copy a checkpoint to the run's folder, however long its storage takes. Raises JobFailedError."""
    where = ray.train.get_context().get_storage()
    waiting = f"checkpoint {name} waits for its storage for {_SAY_AFTER_S:g} s now; training goes on"
    timer = threading.Timer(_SAY_AFTER_S, say, (board, waiting))
    timer.start()
    try:
        return where.persist_current_checkpoint(local, name)
    except OSError as error:
        reason = str(error).strip().splitlines()[-1]
        reason = f"checkpoint {name} cannot be written to {where.experiment_fs_path}: {reason}"
        ray.get(board.give_up.remote(reason, "make its storage well, then the same command goes on"))
        raise JobFailedError(reason) from error
    finally:
        timer.cancel()


class KeepSnapshot(ray.train.UserCallback):
    """Keeps a second copy of Ray Train's snapshot, which it overwrites in place.

    Ray Train empties the file before it writes it: a kill or a full disk at that moment would make it forget every
    checkpoint. It deletes old checkpoints only after that, so what the copy names is still there. On S3 a file is
    replaced whole: there is no such moment, and a server that is away must not hold up the run for a copy.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._in_place = not storage.is_s3(folder)

    def after_report(
        self,
        run_context: Any,  # noqa: ANN401
        metrics: list[dict[str, Any]],
        checkpoint: ray.train.Checkpoint | None,
    ) -> None:
        """Called by the controller, after it has written the snapshot."""
        if checkpoint is not None and self._in_place:
            content = storage.read_bytes(storage.join(self._folder, SNAPSHOT))
            storage.write_bytes(storage.join(self._folder, COPY), content)


def mend_snapshot(folder: str) -> None:
    """Put the copy in place of a snapshot that is not whole; without a copy no checkpoint was ever committed."""
    snapshot, copy = storage.join(folder, SNAPSHOT), storage.join(folder, COPY)
    if not storage.exists(snapshot):
        return
    content = storage.read_bytes(snapshot)
    try:
        json.loads(content)
    except ValueError:
        if storage.exists(copy):
            storage.write_bytes(snapshot, storage.read_bytes(copy))
        else:
            storage.remove_file(snapshot)


def newest(folder: str) -> str:
    """The checkpoint that a run in this folder would go on from, for a message."""
    try:
        found = storage.read_json(storage.join(folder, SNAPSHOT))["latest_checkpoint_result"]["checkpoint_dir_name"]
    except (ValueError, KeyError, TypeError, OSError):
        return "there is no checkpoint yet"
    return f"the last good checkpoint is {storage.join(folder, found)}"
