"""Drill a release: kills, faults and damage on small jobs, each of which must end as if nothing had happened.

    make drill
    python -m tests.drills [--seed 7] [--minutes 30] [--at-once 2] [--only NAME[/MOMENT]] [--list] [--docs PAGE]
    python -m tests.drills --resume [...]       what drill.json says to be left, or to have failed

Writes runs/drill/drill.md and drill.json. Exit status 1 when anything was not as it should be.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from tests.drills import faults, kills, report
from tests.drills.drill import Drill
from tests.drills.lab import Lab
from tests.drills.report import Report, Try
from tests.drills.trial import DrillError, MissedError, SkippedError, Trial, kill_all

_ATTEMPTS = 3  # at a moment that may pass before we are there


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drills asked for; returns the exit status."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    chosen = choose([*kills.drills(), *faults.drills()], options.only)
    if options.list:
        print("\n".join(f"{drill.name:32} {drill.what}: {drill.where} ({', '.join(m)})" for drill, m in chosen))
        return 0
    if not chosen:
        print(f"error: no drill is called {', '.join(options.only)}; --list shows them", file=sys.stderr)
        return 2
    earlier = report.read(options.output) if options.resume else None
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    left = chosen if earlier is None else without(chosen, earlier.good)
    found = run(left, seed, options.minutes, options.at_once)
    if earlier is not None:
        found = found.after(earlier)
    text, data = report.write(found, options.output)
    print(f"\n{found.as_markdown()}\n{text}\n{data}")
    if options.docs:
        report.put_into(options.docs, found.as_markdown())
    return int(found.failed)


def choose(all_drills: Sequence[Drill], only: Sequence[str]) -> list[tuple[Drill, tuple[str, ...]]]:
    """Return the drills whose name begins with one of `only`, with the moments asked for; all when it is empty."""
    if not only:
        return [(drill, drill.moments) for drill in all_drills]
    chosen = []
    for drill in all_drills:
        wanted = [one.partition("/")[2] for one in only if drill.name.startswith(one.partition("/")[0])]
        if moments := tuple(m for m in drill.moments if any(w in ("", m) for w in wanted)):
            chosen.append((drill, moments))
    return chosen


def without(
    chosen: Sequence[tuple[Drill, tuple[str, ...]]], done: Sequence[Try]
) -> list[tuple[Drill, tuple[str, ...]]]:
    """Return the drills with the moments that are still to be tried."""
    names = {(one.drill, one.moment) for one in done}
    left = [(drill, tuple(m for m in moments if (drill.name, m) not in names)) for drill, moments in chosen]
    return [(drill, moments) for drill, moments in left if moments]


def in_turn(chosen: Sequence[tuple[Drill, tuple[str, ...]]], seed: int) -> list[tuple[Drill, str]]:
    """Return all tries in an order drawn, but each drill's first before any drill's second.

    So no kind of fault is left out every time where the time is short.

    Args:
        chosen: drills and their moments.
        seed: of the order.
    """
    drawn = random.Random(seed)
    todo: list[tuple[int, float, Drill, str]] = []
    for drill, moments in chosen:
        for turn, moment in enumerate(drawn.sample(moments, len(moments))):
            todo.append((turn, drawn.random(), drill, moment))
    return [(drill, moment) for _, _, drill, moment in sorted(todo, key=lambda one: one[:2])]


def run(chosen: Sequence[tuple[Drill, tuple[str, ...]]], seed: int, minutes: float, at_once: int) -> Report:
    """Do the drills until the time is up, or a signal ends them.

    Args:
        chosen: drills and their moments.
        seed: of all that is drawn.
        minutes: after which no try is begun.
        at_once: tries beside each other.
    """
    started = time.monotonic()
    todo = in_turn(chosen, seed)
    tries: list[Try] = []

    def do(item: tuple[Drill, str]) -> Try | None:
        gone = time.monotonic() - started
        if gone > 60 * minutes or lab.ending:
            return None
        ahead = gone / len(tries) * (len(todo) - len(tries)) if tries else 0.0
        eta = f"ETA {min(ahead, 60 * minutes - gone) / 60:.0f} min" if tries else ""
        say(f"[{len(tries)} of {len(todo)} done] {item[0].name}/{item[1]} {eta}")
        done = attempt(lab, *item, seed)
        if lab.ending:
            return None
        tries.append(done)
        return done

    with Lab(lambda text: say(f"  {text}")) as lab:
        if at_once > 1:
            lab.prepare()
        with ThreadPoolExecutor(at_once) as pool:
            futures = [pool.submit(do, item) for item in todo]
            try:
                wait(futures)
            except (KeyboardInterrupt, SystemExit):  # the report tells of what is done
                lab.ending = True
                kill_all(lab.folder.name)  # so that no try waits for them
    found = [future.result() for future in futures]
    missing = [f"{drill.name}/{moment}" for (drill, moment), done in zip(todo, found, strict=True) if done is None]
    machine = f"{os.cpu_count()} cores, {at_once} at once"
    return Report(seed, machine, time.monotonic() - started, [one for one in found if one], missing)


def say(text: str) -> None:
    """Show progress."""
    print(text, file=sys.stderr, flush=True)


def attempt(lab: Lab, drill: Drill, moment: str, seed: int) -> Try:
    """Do one drill at one moment, again where the moment was missed."""
    for number in range(_ATTEMPTS):
        record = Try(drill.name, drill.what, drill.where, moment, seed)
        try:
            with Trial(lab, record, number) as trial:
                drill.act(trial, moment)
        except MissedError as missed:
            if number < _ATTEMPTS - 1:
                continue
            record.problems.append(f"missed {_ATTEMPTS} times: {missed}")
        except SkippedError as reason:
            record.skipped = str(reason)
        except DrillError as error:
            record.problems.append(str(error))
        except Exception as error:  # the others are drilled all the same
            record.problems.append(f"the drill itself failed: {type(error).__name__}: {error}")
        break
    verdict = record.skipped or "; ".join(record.problems) or "as it should be"
    say(f"  {drill.name}/{moment}: {record.seconds:.0f} s, {record.starts} starts: {verdict}")
    return record


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.drills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="of all that is drawn; default: another one each time")
    parser.add_argument("--minutes", type=float, default=30.0, help="after these no new drill is begun")
    parser.add_argument("--at-once", type=int, default=1, help="tries beside each other")
    parser.add_argument("--only", action="append", default=[], help="drills whose name begins so; NAME/MOMENT")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier report says to be as it should be")
    parser.add_argument("--output", type=Path, default=Path("runs/drill"), help="folder of the report")
    parser.add_argument("--docs", type=Path, help="a page between whose marks the table is written")
    parser.add_argument("--list", action="store_true", help="show the drills and do nothing")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
