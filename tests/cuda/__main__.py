"""Prove on this machine that all works, and how fast it is: `python -m tests.cuda OUT`, or infra/gpu_acceptance.sh.

Stages run in separate processes, one after the other, each with a time limit. OUT/report.md and report.json are
complete after every check, so that a machine that is lost half-way leaves its results. Without a GPU the same code runs
on the CPU at small sizes, and checks that need a GPU are listed as skipped. Only the standard library is needed here.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.cuda import machine
from tests.cuda.report import REHEARSAL, WAITING, Entry, Report, Stage, read_stage

REPO = Path(__file__).parents[2]
# Name, tier, seconds at most.
STAGES = (
    ("network", 1, 100),
    ("restoring", 1, 90),
    ("training", 1, 140),
    ("ranks", 1, 60),
    ("speed", 1, 160),
    ("cluster", 2, 200),
    ("serving", 2, 100),
)
LIMIT_S = 450.0  # of all; the script's own limit of eight minutes comes after it
# Without a card no rented minute is lost, and the machine may be busy: each limit is so many times as long.
PATIENCE = 4


class _StoppedError(Exception):
    """Report that a signal asked for the end."""


class _Parser(argparse.ArgumentParser):
    """Answer a wrong request with one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end."""
        self.exit(2, f"error: {message}\n")


def main() -> int:
    """Run the stages; return 0 when something passed, nothing failed and the rest was skipped, else 1."""
    given = _arguments()
    report = Report(given.out, _chosen(given.only))
    if given.end_with_parent:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        _run(report, given)
        report.state = "complete"
    except _StoppedError as stopped:
        report.state = f"stopped by {stopped}"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    report.write()
    print(f"{report.verdict()}\n{given.out / 'report.md'}", flush=True)
    counts = report.counts()
    return 1 if counts["failed"] or counts[WAITING] or not counts["passed"] else 0


def _arguments() -> argparse.Namespace:
    parser = _Parser(prog="python -m tests.cuda", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for report.md and report.json")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    parser.add_argument("--limit", type=float, help="seconds for all stages together")
    only = {"action": "append", "metavar": "STAGE[/CHECK]", "help": "this stage or check alone; several times"}
    parser.add_argument("--only", type=_known, **only)
    by_script = "end when the process that started this one does, as the script's limit of time may be killed"
    parser.add_argument("--end-with-parent", action="store_true", help=by_script)
    return parser.parse_args()


def _known(wish: str) -> str:
    """Return the name of a stage, or of a stage's check. Raises ArgumentTypeError."""
    stage, _, check = wish.partition("/")
    names = [name for name, _, _ in STAGES]
    if stage not in names:
        raise argparse.ArgumentTypeError(f"no stage {stage!r}; there are {', '.join(names)}")
    checks = list(read_stage(stage, 1).checks)
    if check not in checks and wish != stage:
        raise argparse.ArgumentTypeError(f"{stage} has no check {check!r}; there are {', '.join(checks)}")
    return wish


def _chosen(only: list[str] | None) -> list[Stage]:
    """List the stages with the checks that are wanted, in their order; all without a wish."""
    stages = [read_stage(name, tier) for name, tier, _ in STAGES]
    for stage in stages:
        if only and stage.name not in only:
            stage.checks = {name: entry for name, entry in stage.checks.items() if f"{stage.name}/{name}" in only}
    return [stage for stage in stages if stage.checks]


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise _StoppedError(signal.Signals(number).name)


def _run(report: Report, given: argparse.Namespace) -> None:
    started = time.monotonic()
    report.machine = _machine() | {"process": os.getpid()}
    device = given.device if given.device != "auto" else _device(report.machine)
    report.machine["checked"] = "the card" if device == "cuda" else REHEARSAL
    report.write()
    patience = 1 if device == "cuda" else PATIENCE
    deadline = started + (given.limit or patience * LIMIT_S)
    limits = {name: patience * limit for name, _, limit in STAGES}
    for stage in report.stages:
        if absent := machine.missing(stage.tier):
            for entry in stage.checks.values():
                entry.result, entry.reason = "skipped", f"needs {', '.join(absent)}"
            report.write()
            continue
        _stage(report, stage, device, min(deadline, time.monotonic() + limits[stage.name]))


def _machine() -> dict[str, object]:
    """Describe the machine, in a process of its own: what is asked may hang or crash."""
    command = [sys.executable, "-m", "tests.cuda.machine"]
    try:
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return {"not described": "no answer in 120 s"}
    if done.returncode != 0:
        return {"not described": (done.stderr.strip().splitlines() or [_how_it_ended(done.returncode)])[-1]}
    described: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return described


def _device(described: dict[str, object]) -> str:
    """Choose the device. A card that the driver knows and torch does not must fail, and not pass on the CPU."""
    return "cuda" if {"card", "nvidia-smi", "not described"} & described.keys() else "cpu"


def _stage(report: Report, stage: Stage, device: str, deadline: float) -> None:
    """Run a stage's checks; a check that takes its process with it does not take those after it."""
    results = report.folder / f"{stage.name}.jsonl"
    results.unlink(missing_ok=True)
    print(f"{stage.name}: {len(stage.checks)} checks on {device}", flush=True)
    left = list(stage.checks)
    while left:
        if deadline - time.monotonic() <= 1:
            stage.note = "The time was up."
            report.write()
            return
        begun = _process(report, stage, device, results, deadline, left)
        if begun is None:
            return
        left = left[left.index(begun) + 1 :]


def _process(
    report: Report, stage: Stage, device: str, results: Path, deadline: float, checks: list[str]
) -> str | None:
    """Run one process to its end; return the check that it died of, if it did.

    Args:
        report: what is known, kept current.
        stage: of which the checks are.
        device: on which they run.
        results: the file in which the process says what it does.
        deadline: when it is killed, on the monotonic clock.
        checks: their names, in their order.
    """
    command = [sys.executable, "-m", "tests.cuda.stage", stage.name, *checks]
    command += ["--device", device, "--results", str(results)]
    results.touch()
    with (
        (report.folder / f"{stage.name}.log").open("ab") as log,
        results.open(encoding="utf-8") as lines,
        subprocess.Popen(command, cwd=REPO, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        lines.seek(0, os.SEEK_END)
        began, started = "", time.monotonic()
        try:
            while True:
                ended = process.poll() is not None
                while line := lines.readline():
                    if not line.endswith("\n"):  # half a line: the rest comes
                        lines.seek(lines.tell() - len(line))
                        break
                    began = _take(report, stage, json.loads(line), began)
                if ended or time.monotonic() > deadline:
                    break
                time.sleep(0.1)
        finally:
            _kill(process)
    if process.returncode == 0:
        return None
    late = time.monotonic() > deadline
    why = f"not finished after {time.monotonic() - started:.0f} s" if late else _how_it_ended(process.returncode)
    if not began:
        # Not a check's doing: the module itself does not import, for instance.
        stage.note = f"The process did not begin: {why}; {stage.name}.log has the rest."
        report.write()
        return None
    entry = stage.checks[began]
    if entry.result == WAITING:
        entry.result, entry.reason = "failed", why
    report.write()
    return began


def _take(report: Report, stage: Stage, line: dict, began: str) -> str:
    """Enter a line of the stage; return the check that is being tried or was the last."""
    entry: Entry = stage.checks[line["check"]]
    if line["result"] == "begun":
        return str(line["check"])
    entry.result, entry.reason = line["result"], line["reason"]
    entry.facts, entry.seconds = line["facts"], line["seconds"]
    print(f"  {entry.name}: {entry.result} {entry.reason}".rstrip(), flush=True)
    report.write()
    return began


def _how_it_ended(status: int) -> str:
    return (
        f"its process was killed by {signal.Signals(-status).name}" if status < 0 else f"its process ended ({status})"
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a stage and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
