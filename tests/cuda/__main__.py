"""Prove on this machine that all works, and how fast it is: `python -m tests.cuda OUT`, or infra/gpu_acceptance.sh.

Stages run in processes of their own, one after the other, each with a time limit. OUT/report.md and report.json are
whole after every check, so that a machine taken away half-way leaves what it told. Without a card the same code runs on
the CPU at small sizes, and what needs a card is listed as skipped. Nothing but the standard library is needed here.
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
from tests.cuda.report import WAITING, Entry, Report, Stage, read_stage

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


class _StoppedError(Exception):
    """Report that a signal asked for the end."""


def main() -> int:
    """Run the stages; return 0 when nothing failed and all was tried or skipped, else 1."""
    given = _arguments()
    stages = [read_stage(name, tier) for name, tier, _ in STAGES if not given.only or name in given.only]
    report = Report(given.out, stages)
    # The process that limits our time may be killed, and would leave us behind.
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
    return 1 if counts["failed"] or counts[WAITING] else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.cuda", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for report.md and report.json")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for all stages together")
    parser.add_argument("--only", action="append", choices=[name for name, _, _ in STAGES], help="this stage alone")
    return parser.parse_args()


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise _StoppedError(signal.Signals(number).name)


def _run(report: Report, given: argparse.Namespace) -> None:
    deadline = time.monotonic() + given.limit
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda.machine"], cwd=REPO, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode == 0:
        report.machine = json.loads(done.stdout.strip().splitlines()[-1])
    else:
        report.machine = {"not described": (done.stderr.strip().splitlines() or ["?"])[-1]}
    report.machine["process"] = os.getpid()
    report.write()
    device = given.device if given.device != "auto" else "cuda" if "card" in report.machine else "cpu"
    limits = {name: limit for name, _, limit in STAGES}
    for stage in report.stages:
        if absent := machine.missing(stage.tier):
            for entry in stage.checks.values():
                entry.result, entry.reason = "skipped", f"needs {', '.join(absent)}"
            report.write()
            continue
        _stage(report, stage, device, min(deadline, time.monotonic() + limits[stage.name]))


def _stage(report: Report, stage: Stage, device: str, deadline: float) -> None:
    """Run a stage's checks; a check that takes its process with it does not take those after it."""
    results = report.folder / f"{stage.name}.jsonl"
    results.unlink(missing_ok=True)
    print(f"{stage.name}: {len(stage.checks)} checks on {device}", flush=True)
    after = ""
    while True:
        left = deadline - time.monotonic()
        if left <= 1:
            stage.note = "The time was up."
            report.write()
            return
        begun = _process(report, stage, device, results, deadline, after)
        if begun is None:
            return
        after = begun


def _process(report: Report, stage: Stage, device: str, results: Path, deadline: float, after: str) -> str | None:
    """Run one process to its end; return the check that it died of, if it did."""
    command = [sys.executable, "-m", "tests.cuda.stage", stage.name, "--device", device, "--results", str(results)]
    command += ["--after", after] if after else []
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
