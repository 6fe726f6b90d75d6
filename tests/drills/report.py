"""What the drills found: a table in Markdown for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

BEGIN, END = "<!-- drill: begin -->", "<!-- drill: end -->"
_MOMENTS = 24  # columns
_HEAD = ("what happens", "to what", "moments", "tries", "bit-equal", "lines said", "seconds", "failures")


@dataclass
class Try:
    """One drill at one moment, and how it went."""

    drill: str
    what: str
    where: str
    moment: str
    seed: int
    starts: int = 0  # how often the command was given
    equal: bool | None = None  # whether the result is that of an undisturbed run; None: it was not to have one
    lines: int = 0  # the most that one of its sittings said besides progress
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    skipped: str = ""  # why it could not be tried

    @property
    def failed(self) -> bool:
        """Whether something was not as it should be."""
        return bool(self.problems)

    @property
    def repeat(self) -> str:
        """The command that does it again."""
        return f"python -m tests.drills --seed {self.seed} --only {self.drill}/{self.moment}"


@dataclass(frozen=True)
class Report:
    """All tries of a drill, and the names of those for which there was no time."""

    seed: int
    machine: str
    seconds: float
    tries: Sequence[Try]
    not_drilled: Sequence[str] = ()
    sittings: int = 1

    @property
    def good(self) -> list[Try]:
        """The tries that were as they should be, or could not be made here."""
        return [one for one in self.tries if not one.failed]

    def after(self, earlier: Report) -> Report:
        """Add what was good in earlier sittings to a report of this one."""
        seconds, sittings = self.seconds + earlier.seconds, self.sittings + earlier.sittings
        return replace(self, tries=[*earlier.good, *self.tries], seconds=seconds, sittings=sittings)

    @property
    def failed(self) -> bool:
        """Whether any try failed."""
        return any(one.failed for one in self.tries)

    def as_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def as_markdown(self) -> str:
        """Return the table, a row a drill, and below it the failures, what was skipped and what was left out."""
        drilled = [one for one in self.tries if not one.skipped]
        bad = [one for one in drilled if one.failed]
        sittings = f" ({self.sittings} sittings)" if self.sittings > 1 else ""
        lines = [
            f"Seed {self.seed}, {self.machine}: {_counts(drilled, self.seconds)}, {len(bad)} failures{sittings}.",
            "",
            _row(_HEAD),
            _row(["---"] * 3 + ["---:"] * 5),
        ]
        lines += [_row(_cells(rows)) for rows in _by_drill(drilled)]
        if bad:
            lines += ["", "Failures:", ""]
            lines += [f"- `{one.repeat}`: {'; '.join(one.problems)}" for one in bad]
        if skipped := [one for one in self.tries if one.skipped]:
            lines += ["", "Skipped:", ""]
            lines += [f"- {', '.join(names)}: {reason}" for reason, names in _by_reason(skipped).items()]
        if self.not_drilled:
            lines += ["", f"Not drilled, the time was up: {', '.join(self.not_drilled)}."]
        return "\n".join(lines) + "\n"


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write `drill.md` and `drill.json`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    text, data = folder / "drill.md", folder / "drill.json"
    text.write_text(report.as_markdown(), encoding="utf-8")
    data.write_text(report.as_json(), encoding="utf-8")
    return text, data


def read(folder: Path) -> Report:
    """Read the `drill.json` of an earlier sitting."""
    content = json.loads((folder / "drill.json").read_text(encoding="utf-8"))
    return Report(**content | {"tries": [Try(**one) for one in content["tries"]]})


def put_into(page: Path, table: str) -> None:
    """Replace what lies between the two marks of a page.

    Raises:
        ValueError: the page has not exactly one of each mark, in this order.
    """
    content = page.read_text(encoding="utf-8")
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"{page}: needs the lines '{BEGIN}' and '{END}' once each")
    page.write_text(f"{before}{begin}\n{table.strip()}\n{end}{after}", encoding="utf-8")


def _counts(tries: Sequence[Try], seconds: float) -> str:
    starts = sum(one.starts for one in tries)
    return f"{len(tries)} tries in {seconds / 60:.0f} minutes, {starts} starts of a command"


def _by_drill(tries: Sequence[Try]) -> list[list[Try]]:
    groups: dict[str, list[Try]] = {}
    for one in tries:
        groups.setdefault(one.drill, []).append(one)
    return list(groups.values())


def _by_reason(tries: Sequence[Try]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for one in tries:
        groups.setdefault(one.skipped, []).append(f"{one.drill}/{one.moment}")
    return groups


def _cells(tries: Sequence[Try]) -> list[str]:
    """Return the cells of one drill's row."""
    compared = [one.equal for one in tries if one.equal is not None]
    return [
        tries[0].what,
        tries[0].where,
        _moments([one.moment for one in tries]),
        str(len(tries)),
        f"{sum(compared)} of {len(compared)}" if compared else "-",
        str(max(one.lines for one in tries)),
        f"{sum(one.seconds for one in tries) / len(tries):.0f}",
        str(sum(one.failed for one in tries)),
    ]


def _moments(names: Sequence[str]) -> str:
    """Name the moments, or count them where the names are long: a page is 120 columns wide."""
    shown = ", ".join(names)
    return shown if len(shown) <= _MOMENTS else f"{len(names)} of them"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
