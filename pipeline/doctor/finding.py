"""Findings of checks, and their output."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kernels_bank.runtime.redact import mask_text

Status = Literal["ok", "warn", "fail"]
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Finding:
    """Hold one finding: `fail` would make a run fail, `warn` would make it slow or fragile."""

    check: str
    where: str
    status: Status
    found: str
    remedy: str = ""


def failed(findings: Sequence[Finding]) -> int:
    """Count the findings that would make a run fail."""
    return sum(finding.status == "fail" for finding in findings)


def show(findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print a table with remedies, or JSON for machines, both without secrets."""
    findings = [_masked(finding) for finding in findings]
    if as_json:
        print(json.dumps({"ok": not failed(findings), "findings": [asdict(finding) for finding in findings]}, indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("check", "where", "", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        mark = f"[{_COLOURS[finding.status]}]{finding.status}[/]"
        table.add_row(finding.check, escape(finding.where), mark, escape(finding.found), escape(finding.remedy))
    # A job's log has no width, so lines are not wrapped there.
    Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=True).print(table)


def _masked(finding: Finding) -> Finding:
    where, found, remedy = (mask_text(text) for text in (finding.where, finding.found, finding.remedy))
    return replace(finding, where=where, found=found, remedy=remedy)
