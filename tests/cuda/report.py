"""The report of an acceptance: report.json and report.md, whole after every check. Nothing but the standard library."""

from __future__ import annotations

import ast
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WAITING = "did not run"
REHEARSAL = "the CPU, at small sizes"  # what is checked where it is not a card


@dataclass
class Entry:
    """Hold what is known of one check."""

    name: str
    law: str
    result: str = WAITING  # passed, failed, skipped
    reason: str = ""
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Stage:
    """Hold the checks of one module, and how its process ended."""

    name: str
    title: str
    tier: int
    checks: dict[str, Entry]
    note: str = ""


def read_stage(name: str, tier: int) -> Stage:
    """List the checks of a module without importing it: what needs torch is read where there is none."""
    tree = ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))
    title = (ast.get_docstring(tree) or name).splitlines()[0]
    checks = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("check_"):
            check = node.name.removeprefix("check_")
            law = " ".join((ast.get_docstring(node) or "").split())
            checks[check] = Entry(check.replace("_", " "), law)
    return Stage(name, title, tier, checks)


class Report:
    """Keep the report in a folder current."""

    def __init__(self, folder: Path, stages: list[Stage]) -> None:
        self.folder, self.stages = folder, stages
        self.machine: dict[str, Any] = {}
        self.state = "still running, or killed without a word: what did not run is listed as such"
        self.started = time.time()
        folder.mkdir(parents=True, exist_ok=True)
        self.write()

    def entries(self) -> list[tuple[Stage, Entry]]:
        """List every check with its stage."""
        return [(stage, entry) for stage in self.stages for entry in stage.checks.values()]

    def counts(self) -> dict[str, int]:
        """Count the checks by result."""
        found = {"passed": 0, "failed": 0, "skipped": 0, WAITING: 0}
        for _, entry in self.entries():
            found[entry.result] += 1
        return found

    def verdict(self) -> str:
        """Say in one line how it went."""
        counts = self.counts()
        told = ", ".join(f"{count} {result}" for result, count in counts.items() if count)
        return f"{told} ({self._place()}; {time.time() - self.started:.0f} s; {self.state})"

    def _place(self) -> str:
        if self.machine.get("checked", REHEARSAL) == REHEARSAL:
            return f"{'' if 'card' in self.machine else 'no CUDA card: '}a rehearsal on the CPU at small sizes"
        return str(self.machine.get("card", "no CUDA card that PyTorch can use"))

    def write(self) -> None:
        """Write both files, each in one piece."""
        stages = [
            {"name": s.name, "tier": s.tier, "note": s.note, "checks": [vars(e) for e in s.checks.values()]}
            for s in self.stages
        ]
        data = {"verdict": self.verdict(), "counts": self.counts(), "machine": self.machine, "stages": stages}
        _replace(self.folder / "report.json", json.dumps(data, indent=1, default=str) + "\n")
        _replace(self.folder / "report.md", "\n".join(self._lines()) + "\n")

    def _lines(self) -> list[str]:
        lines = ["# Acceptance on a GPU", "", self.verdict(), ""]
        lines += ["| machine | |", "|---|---|", *(f"| {name} | {value} |" for name, value in self.machine.items()), ""]
        bad = [(s, e) for s, e in self.entries() if e.result == "failed"]
        if bad:
            lines += ["## Failed", ""]
            lines += [f"- **{s.name}: {e.name}** ({e.law}) {e.reason}" for s, e in bad] + [""]
        for stage in self.stages:
            lines += [f"## {stage.name.capitalize()}", "", stage.title, ""]
            if stage.note:
                lines += [f"**{stage.note}**", ""]
            lines += ["| check | result | s | measured |", "|---|---|---:|---|"]
            lines += [_row(entry) for entry in stage.checks.values()] + [""]
            for entry in stage.checks.values():
                if rows := entry.facts.get("rows"):
                    lines += [f"{entry.law}", "", *table(rows), ""]
        idle = [(s, e) for s, e in self.entries() if e.result in {"skipped", WAITING}]
        if idle:
            lines += ["## Not tried", ""]
            lines += [f"- {s.name}: {e.name}: {e.reason or s.note or e.result}" for s, e in idle] + [""]
        return lines


def _row(entry: Entry) -> str:
    facts = ", ".join(f"{name} {number(value)}" for name, value in entry.facts.items() if name != "rows")
    told = f"{facts or '-'}. {entry.law}" if entry.result == "passed" else f"{entry.reason or '-'}. {entry.law}"
    seconds = f"{entry.seconds:.1f}" if entry.seconds else ""
    result = entry.result if entry.result != "failed" else "**failed**"
    return f"| {entry.name} | {result} | {seconds} | {told.removeprefix('-. ')} |".replace("\n", " ")


def table(rows: list[Mapping[str, Any]]) -> list[str]:
    """Write rows as a Markdown table; numbers to three digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return head + ["| " + " | ".join(number(row.get(name, "")) for name in columns) + " |" for row in rows]


def number(value: object) -> str:
    """Write a number as people read it."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
