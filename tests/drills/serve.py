"""A replica of the server is killed under requests: clients get answers that they understand, soon a good one again."""

from __future__ import annotations

import json
import signal
import sys
import time
import urllib.error
import urllib.request

from tests.drills.drill import Drill
from tests.drills.jobs import Job
from tests.drills.kills import victims
from tests.drills.trial import DrillError, Sitting, Trial
from tests.helpers.servers import free_port

_GAP_S = 10.0
_GIVE_UP_S = 90.0


def kill_replica(trial: Trial, _: str) -> None:
    """Send requests without end, kill the replica, and look at every answer until the next one that is good."""
    photograph = (trial.lab.pictures.small / "crop0.png").read_bytes()
    sitting, address = _serving(trial)
    _wait_for_good(trial, sitting, address, photograph)
    if not (replicas := victims(trial, sitting, r"ray::ServeReplica:\S+:restore")):
        raise DrillError("there is no process called ray::ServeReplica")
    time.sleep(trial.random.uniform(0, 1))
    trial.random.choice(replicas).kill()
    gone = time.monotonic()
    _wait_for_good(trial, sitting, address, photograph)
    gap = time.monotonic() - gone
    trial.check(gap <= _GAP_S, f"{gap:.0f} s without a good answer")
    sitting.process.send_signal(signal.SIGTERM)
    trial.check(trial.let_end(sitting) == 0, f"SIGTERM ended it with status {sitting.poll()}")
    trial.nothing_left()


def _serving(trial: Trial) -> tuple[Sitting, str]:
    """Start the server and wait until it says that it listens."""
    port = free_port()
    command = [sys.executable, "jobs/serve.py", "--model", trial.lab.model, "--port", str(port)]
    sitting = trial.start(Job("serving", command, "", lambda: 0.0, lambda: False, dict))
    address = f"http://127.0.0.1:{port}"
    texts = sitting.texts()
    trial.wait_for(lambda: any(address in text.read_text() for text in texts), sitting, "its address")
    return sitting, address


def _wait_for_good(trial: Trial, sitting: Sitting, address: str, photograph: bytes) -> None:
    """Ask until an image comes back; every other answer must be one that a client understands."""
    deadline = time.monotonic() + _GIVE_UP_S
    while time.monotonic() < deadline:
        if sitting.poll() is not None:
            raise DrillError(f"the server ended with status {sitting.poll()}: {sitting.last_line()}")
        try:
            with urllib.request.urlopen(f"{address}/restore", data=photograph, timeout=30) as answer:
                if answer.read().startswith(b"\x89PNG"):
                    return
                trial.problem("an answer with status 200 that is no image")
        except urllib.error.HTTPError as error:
            trial.check(_understood(error), f"answered by {error.code} without Retry-After or without a JSON error")
        except OSError as error:
            trial.problem(f"no answer at all: {error}")
        time.sleep(0.1)
    raise DrillError(f"no good answer for {_GIVE_UP_S:g} s")


def _understood(answer: urllib.error.HTTPError) -> bool:
    """Whether a client can tell from it that it should come again."""
    try:
        return answer.code == 503 and "Retry-After" in answer.headers and "error" in json.loads(answer.read())
    except ValueError:
        return False


def drills() -> list[Drill]:
    """Return the drill of this file."""
    return [Drill("kill-replica", "SIGKILL of the replica", "serving, under requests", ("middle",), kill_replica)]
