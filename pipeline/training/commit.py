"""The commit of a checkpoint to the run's folder: written locally, uploaded in the background, old ones kept.

A checkpoint counts once Ray Train has recorded it in its snapshot, a JSON file that names the checkpoints of a run.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import CheckpointUploadMode

from kernels_bank.runtime import folders, open_output, scratch, storage, uris
from kernels_bank.runtime.errors import ArtefactError, BadRequestError, JobFailedError, UnavailableError
from kernels_bank.runtime.output import not_made_again
from pipeline.training import checkpoint
from pipeline.training.channel import say
from pipeline.training.learner import Learner

SNAPSHOT, COPY = "checkpoint_manager_snapshot.json", "snapshot-copy.json"
# An upload waits while its storage is unavailable (the filesystem of `launch.py` retries); after this time, a message
# tells the user.
_SAY_AFTER_S = 30.0


def submit_checkpoint(
    state: checkpoint.State,
    learner: Learner,
    metrics: dict[str, float],
    rank: int,
    channel: Any,  # noqa: ANN401 - an actor handle
) -> None:
    """Submit a checkpoint to Ray Train. Every rank reports (Ray Train counts them); only rank 0 writes.

    The checkpoint is written to this machine's temporary folder at once and uploaded from there while training
    continues. The end of the training function waits for all uploads.

    Args:
        state: progress of the run.
        learner: learner to save.
        metrics: metrics of the step.
        rank: rank of this worker.
        channel: channel for messages to the user.
    """
    config, values = state.config, metrics | {"step": state.step, "score": state.score}
    if rank != 0:
        ray.train.report(values, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
        return
    home = uris.join(config.output, config.name)
    folder = scratch.folder("checkpoint")  # deleted once it is uploaded
    checkpoint.save(folder, state, learner.network, learner.ema, learner.optimizer, learner.schedule)
    ray.train.report(
        values,
        checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
        checkpoint_dir_name=f"step-{state.step:08d}",
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        checkpoint_upload_fn=lambda local, name: _upload(local, name, home, channel),
    )


def _upload(local: ray.train.Checkpoint, name: str, home: str, channel: Any) -> ray.train.Checkpoint:  # noqa: ANN401
    """Upload a checkpoint to the run's folder, however long its storage takes. Raises JobFailedError."""
    where = ray.train.get_context().get_storage()
    waiting = f"checkpoint {name} waits for its storage for {_SAY_AFTER_S:g} s now; training continues"
    timer = threading.Timer(_SAY_AFTER_S, say, (channel, waiting))
    timer.start()
    try:
        with not_made_again(home):
            open_output.check(Path(where.experiment_fs_path))  # Ray Train would create a missing folder again
            return where.persist_current_checkpoint(local, name)
    except OSError as error:
        reason = str(error).strip().splitlines()[-1]
        reason = f"checkpoint {name} cannot be written to {where.experiment_fs_path}: {reason}"
        ray.get(channel.report_fatal.remote(reason, "make its storage well, then the same command resumes it"))
        raise JobFailedError(reason) from error
    finally:
        timer.cancel()


class KeepSnapshot(ray.train.UserCallback):
    """Keep a second copy of Ray Train's snapshot, which it overwrites in place.

    Ray Train truncates the file before it writes it: a kill or a full disk at that moment would make it forget every
    checkpoint. It deletes old checkpoints only afterwards, so those named by the copy still exist. On S3 a file is
    replaced atomically, so no copy is needed, and an unavailable server must not delay the run for one.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._in_place = not uris.is_s3(folder)

    def after_report(
        self,
        run_context: Any,  # noqa: ANN401
        metrics: list[dict[str, Any]],
        checkpoint: ray.train.Checkpoint | None,
    ) -> None:
        """Copy the snapshot after the controller has written it."""
        if checkpoint is not None and self._in_place:
            content = storage.read_bytes(uris.join(self._folder, SNAPSHOT))
            storage.write_bytes(uris.join(self._folder, COPY), content)


def mend_snapshot(folder: str) -> None:
    """Replace a missing or truncated snapshot by its copy. Without a copy, no checkpoint was ever committed."""
    snapshot = uris.join(folder, SNAPSHOT)
    source = _whole_one(folder)
    if source and source != snapshot:
        storage.write_bytes(snapshot, storage.read_bytes(source))
    elif not source and storage.exists(snapshot):
        storage.remove_file(snapshot)


def _whole_one(folder: str) -> str:
    """Return the path of the snapshot, or of its copy if the snapshot is missing or truncated; empty without either."""
    snapshot, copy = uris.join(folder, SNAPSHOT), uris.join(folder, COPY)
    if storage.exists(snapshot):
        content = storage.read_bytes(snapshot)
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(content)
            return snapshot
    return copy if storage.exists(copy) else ""


def usable_step(folder: str, *, mend: bool = True) -> int | None:
    """Remove damaged checkpoints from Ray Train's snapshot; return the step of the newest intact one, or None.

    Every file of the newest checkpoint is checked. A damaged checkpoint is renamed to NAME.damaged, and the one before
    takes its place. Nothing else may write to the folder meanwhile.

    Args:
        folder: URI of the run's checkpoints.
        mend: whether to change the folder; otherwise damage is only reported.

    Raises:
        BadRequestError: the run has checkpoints, but none is intact.
        UnavailableError: their storage cannot be read.
    """
    if mend:
        mend_snapshot(folder)
    if not (where := _whole_one(folder)):
        return None
    snapshot = storage.read_json(where, nan=True)  # metrics may be anything
    listed, latest = _listed(snapshot, where)
    problems: list[str] = []
    good: str | None = None
    for name in sorted(listed, key=lambda one: (one == latest, listed[one]), reverse=True):
        try:
            if good is None:
                checkpoint.check(uris.join(folder, name))
                _check_step(folder, name)
                good = name
            elif not storage.exists(uris.join(folder, name)):
                raise ArtefactError(f"{uris.join(folder, name)}: is not there")
        except UnavailableError:
            raise
        except ArtefactError as error:
            problems.append(str(error))
            del listed[name]
    if good is None and problems:
        raise BadRequestError(
            f"{folder}: no checkpoint of this run is good: {'; '.join(problems)}; "
            "give the files back, or start afresh with --resume never"
        )
    if problems and mend:
        _put_aside(folder, snapshot, listed, good)
    for problem in problems:
        print(f"damaged checkpoint: {problem}; the run resumes from {good}", file=sys.stderr, flush=True)
    return None if good is None else _step(good)


def _listed(snapshot: Any, where: str) -> tuple[dict[str, int], str]:  # noqa: ANN401 - JSON
    """Return each checkpoint's report index, and the name of the newest; names must be those of `submit_checkpoint`."""
    try:
        names = [str(result["checkpoint_dir_name"]) for result in snapshot["checkpoint_results"]]
        listed = dict(zip(names, map(int, snapshot["checkpoint_report_indices"]), strict=True))
        latest = snapshot["latest_checkpoint_result"]
        newest = str(latest["checkpoint_dir_name"]) if latest else ""
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{where}: not a snapshot of Ray Train; start afresh with --resume never") from error
    if wrong := [name for name in listed if not re.fullmatch(r"step-\d{8,12}", name)]:
        raise ArtefactError(
            f"{where}: names no checkpoint of ours ({wrong[0]!r:.80}); start afresh with --resume never"
        )
    return listed, newest


def _step(name: str) -> int:
    return int(name.removeprefix("step-"))


def _check_step(folder: str, name: str) -> None:
    if (step := checkpoint.read_state(uris.join(folder, name)).step) != _step(name):
        raise ArtefactError(f"{uris.join(folder, name)}: holds the checkpoint of step {step}")


def _put_aside(folder: str, snapshot: dict[str, Any], listed: dict[str, int], good: str | None) -> None:
    """Write the snapshot without the damaged checkpoints, then rename their folders, which are kept as evidence."""
    results = snapshot["checkpoint_results"]
    left = [result for result in results if result["checkpoint_dir_name"] in listed]
    snapshot["checkpoint_results"] = left
    snapshot["checkpoint_report_indices"] = [listed[result["checkpoint_dir_name"]] for result in left]
    snapshot["latest_checkpoint_result"] = next(r for r in left if r["checkpoint_dir_name"] == good)
    for name in (SNAPSHOT, COPY):
        storage.write_json(uris.join(folder, name), snapshot)
    for result in results:
        name = result["checkpoint_dir_name"]
        if name not in listed and storage.exists(uris.join(folder, name)):
            aside = uris.join(folder, f"{name}.damaged")
            folders.remove_folder(aside)
            folders.move_folder(uris.join(folder, name), aside)


def newest(folder: str) -> str:
    """Return the URI of the checkpoint that a run in this folder would resume from; empty without one."""
    try:
        snapshot = storage.read_json(uris.join(folder, SNAPSHOT), nan=True)
        return uris.join(folder, str(snapshot["latest_checkpoint_result"]["checkpoint_dir_name"]))
    except (ValueError, KeyError, TypeError, OSError):
        return ""


def last_good(folder: str) -> str:
    """Describe in a few words which checkpoint a run in this folder would resume from."""
    found = newest(folder)
    return f"the last good checkpoint is {found}" if found else "there is no checkpoint yet"
