"""Messages to the user: the live line, and a failure in one line."""

from __future__ import annotations

import subprocess
import sys

from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

from kernels_bank.runtime.errors import ArtefactError
from pipeline.training.failures import failure_reason
from pipeline.training.loop import note

RATES = {"images_per_s": 13.268, "data_wait": 0.0126, "grad_norm": 1.0}


def test_the_live_line_has_the_loss_its_terms_psnr_rate_and_wait():
    terms = {"loss": 0.5, "loss_image": 0.05, "loss_code": 0.4, "psnr": 24.123}
    assert note(terms | RATES) == "loss 0.5000 (image 0.0500, code 0.4000) PSNR 24.12 dB 13.3 samples/s data wait 1%"
    assert note({"loss": 0.05, "loss_image": 0.05} | RATES) == "loss 0.0500 13.3 samples/s data wait 1%"


def test_an_error_of_the_training_is_its_last_line_and_ours_has_no_class():
    def traced(line: str) -> dict[int, Exception]:
        return {1: UserExceptionWithTraceback(ValueError(), f"Traceback ...:\n  File ...\n{line}\n")}

    assert failure_reason(traced("ValueError: too small")) == "worker 1: ValueError: too small"
    assert failure_reason(traced("kernels_bank.runtime.errors.ArtefactError: s: no such file")) == (
        "worker 1: s: no such file"
    )
    assert failure_reason({0: ArtefactError("a: b"), 1: ValueError("c")}) == "worker 0: a: b"


def test_what_ray_says_of_a_lost_worker_is_its_first_line():
    error = OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory was ...\nRefer to ...")
    assert failure_reason({0: error}) == (
        "worker 0: OutOfMemoryError: Task was killed due to the node running low on memory."
    )
    lost = WorkerHealthCheckFailedError("A worker health check failed.", failure=error)
    assert failure_reason({0: lost}) == failure_reason({0: error})
    assert failure_reason({0: RayActorError()}).startswith("worker 0: RayActorError: The actor ")


def test_the_actor_that_carries_the_live_line_starts_without_ray_train():
    """It is the first of a training's processes that must answer; Ray Train takes a second to import."""
    code = "import sys, pipeline.training.channel; sys.exit('ray.train' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
