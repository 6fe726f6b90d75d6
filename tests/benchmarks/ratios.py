"""Compare the ratios of a benchmark run with the committed ones, and list those slower by more than a fifth.

python -m tests.benchmarks.ratios RESULTS [--write]

RESULTS is the output of `pytest --benchmark-json`. A ratio is the plain reference's time over ours, both of one run, so
it varies little between machines; higher is faster. `--write` makes this run the new reference.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

COMMITTED = Path(__file__).with_name("ratios.json")
SLOWER = 1.2  # times that are longer by this factor, relative to the reference's, are worth a line


class Pair(NamedTuple):
    """Name two tests whose times are compared."""

    reference: str
    ours: str


# Tests that time both sides themselves leave their ratios in `benchmark.extra_info["ratios"]`.
PAIRS = {
    "data step, one unfolding, x2": Pair("test_data_step[published]", "test_data_step[residual-operator-kept]"),
    "inference, 336 x 224 result, x2": Pair("test_inference[reference]", "test_inference[ours]"),
    "training step, tiny": Pair("test_training_step_tiny[reference]", "test_training_step_tiny[+fused-adam (ours)]"),
    "training step, full": Pair("test_training_step_full[reference]", "test_training_step_full[+fused-adam (ours)]"),
    "degradation of 16 patches": Pair("test_scipy_per_patch", "test_our_degrade"),
    "a sample from a 2K photograph": Pair("test_field_loader", "test_our_feed_task"),
    "a case of the evaluation": Pair("test_a_case[plain, RGB PSNR only]", "test_a_case[ours, all measures]"),
}


def ratios_of(results: dict[str, Any]) -> dict[str, float]:
    """Return the ratios of a run by name; a pair of which only one was run has none."""
    seconds, ratios = {}, {}
    for benchmark in results["benchmarks"]:
        seconds[benchmark["name"]] = benchmark["stats"]["median"] / benchmark["extra_info"].get("samples", 1)
        ratios |= benchmark["extra_info"].get("ratios", {})
    for name, pair in PAIRS.items():
        if pair.reference in seconds and pair.ours in seconds:
            ratios[name] = seconds[pair.reference] / seconds[pair.ours]
    return {name: float(f"{value:.3g}") for name, value in ratios.items()}


def slower(committed: dict[str, float], now: dict[str, float]) -> list[str]:
    """Return a line for each ratio that shows us slower by more than a fifth; the worst first.

    >>> slower({"data step": 5.0, "motion kernels": 99.0}, {"data step": 4.0, "motion kernels": 98.0})
    ['data step: 4x, committed 5x: takes 1.25 times as long']
    >>> slower({"data step": 5.0}, {"data step": 4.5, "new": 0.1})
    []
    """
    longer = {name: committed[name] / value for name, value in now.items() if name in committed}
    return [
        f"{name}: {now[name]:g}x, committed {committed[name]:g}x: takes {factor:.2f} times as long"
        for name, factor in sorted(longer.items(), key=lambda item: -item[1])
        if factor > SLOWER
    ]


def report(committed: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what a run says beside the committed one, line by line. Both are contents of `ratios.json`."""
    then, new = committed["ratios"], now["ratios"]
    where = committed["machine"]
    lines = slower(then, new)
    compared = len(then.keys() & new.keys())
    head = f"speed: {len(lines)} of {compared} ratios slower by more than a fifth than committed"
    if now["machine"] != where:
        head += f" (here {now['machine']}, there {where})"
    return [head, *(f"  {line}" for line in lines)]


def main(results: str, *options: str) -> None:
    """Compare and print; with `--write` put the run's ratios into the committed file, keeping those it lacks."""
    data = json.loads(Path(results).read_text(encoding="utf-8"))
    machine = data["machine_info"]["cpu"].get("brand_raw", data["machine_info"]["machine"])
    now = {"machine": machine, "ratios": ratios_of(data)}
    committed = json.loads(COMMITTED.read_text(encoding="utf-8")) if COMMITTED.exists() else {**now, "ratios": {}}
    print("\n".join(report(committed, now)))
    if "--write" in options:
        kept = committed["ratios"] if committed["machine"] == machine else {}
        now["ratios"] = dict(sorted({**kept, **now["ratios"]}.items()))
        COMMITTED.write_text(json.dumps(now, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
