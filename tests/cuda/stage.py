"""Run checks of one module in this process: `python -m tests.cuda.stage NAME CHECK... --device cuda --results FILE`.

Each begins and ends with a line of JSON in FILE, so that whoever started this process knows what a crash was about.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def checks_of(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Return the checks of a module in the order of their definition."""
    found = {name: value for name, value in vars(module).items() if name.startswith("check_")}
    return {name.removeprefix("check_"): check for name, check in found.items() if check.__module__ == module.__name__}


def _end_with_parent() -> None:
    """Let the kernel end this process when the one that started it dies, however it dies."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("checks", nargs="+")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--results", type=Path, required=True)
    given = parser.parse_args()
    _end_with_parent()

    def tell(**line: object) -> None:
        with given.results.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, default=str) + "\n")

    import torch

    from tests.cuda.place import Place, SkippedError

    place = Place(torch.device(given.device))
    # One for the small tensors of a CPU: threads that wait for each other on a busy machine cost minutes.
    torch.set_num_threads(min(place.pick(4, 1), torch.get_num_threads()))
    checks = checks_of(importlib.import_module(f"tests.cuda.{given.stage}"))
    for name in given.checks:
        check = checks[name]
        tell(check=name, result="begun")
        started, result, reason, facts = time.monotonic(), "passed", "", {}
        try:
            facts = check(place) or {}
            place.wait()
        except SkippedError as skipped:
            result, reason = "skipped", str(skipped)
        except AssertionError as error:
            result, reason = "failed", str(error) or traceback.format_exc().strip().splitlines()[-2].strip()
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            result, reason = "failed", f"{type(error).__name__}: {lines[0]}"
            traceback.print_exc()
        tell(check=name, result=result, reason=reason, facts=facts, seconds=round(time.monotonic() - started, 2))
        if "CUDA error" in reason:
            sys.exit(3)  # nothing works in a process that has met one; the checks after it get another
        if place.is_card:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
