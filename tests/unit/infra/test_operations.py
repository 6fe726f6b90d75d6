"""docs/operations.md against the code: each error line is raised somewhere, each file and flag that it names exists."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

REPO = Path(__file__).parents[3]
TEXT = (REPO / "docs/operations.md").read_text()
OURS, OTHERS = TEXT.split("## When something fails")[1].split("Outside of our messages:")


def lines_of(section: str) -> list[str]:
    """What stands in backticks at the beginning of an entry; a page folds long ones."""
    return [" ".join(line.split()) for line in re.findall(r"^- `([^`]+)`:\s", section, flags=re.M)]


def messages(*folders: Path) -> list[str]:
    r"""Every text in the source; `\x00` stands where a value goes."""
    found = []
    for folder in folders:
        for file in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8", errors="replace"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [p.value if isinstance(p, ast.Constant) else "\x00" for p in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(re.sub(r"%(?:d|s|g)", "\x00", node.value))
    return found


@pytest.fixture(scope="module")
def raised() -> list[str]:
    return messages(*(REPO / name for name in ("kernels_bank", "pipeline", "jobs", "infra")))


def says(line: str, message: str) -> bool:
    """Whether the message may read as `line`, whose `...` stand for values or for what was left out."""
    pattern = ".*".join(re.escape(part) for part in line.split("..."))
    return re.search(pattern, message, flags=re.S) is not None


@pytest.mark.parametrize("line", lines_of(OURS))
def test_the_line_is_raised_by_the_code(line: str, raised: list[str]):
    assert any(says(line, message) for message in raised)


def test_a_line_that_nobody_raises_is_noticed(raised: list[str]):
    assert len(lines_of(OURS)) > 20
    assert not any(says("the moon is ... and cannot be reached", message) for message in raised)


def test_lines_of_ray_and_mlflow_are_theirs():
    ray, mlflow = (Path(find_spec(name).origin).parent for name in ("ray", "mlflow"))  # type: ignore[union-attr, arg-type]
    theirs = messages(ray / "_private", ray / "dashboard/modules/job", mlflow / "store/db")
    known = [line for line in lines_of(OTHERS) if "request body" not in line]  # aiohttp's own
    assert len(known) == 3
    for line in known:
        assert any(line in message for message in theirs), line


def test_files_that_are_named_exist():
    named = set(re.findall(r"\b(?:infra|jobs|docs)/[\w./-]+\.(?:py|yaml|json|md)\b", TEXT)) - {"jobs/configs/NAME.yaml"}
    assert len(named) > 10
    for name in named:
        assert (REPO / name).is_file(), name


def test_commands_of_the_launcher_exist():
    launcher = (REPO / "infra/local_cluster.py").read_text()
    for command in re.findall(r"local_cluster\.py (\w[\w-]*)", TEXT):
        assert f'"{command}"' in launcher, command


def test_series_that_are_named_are_exported():
    from kernels_bank.runtime import gauges
    from pipeline.serving.work_queue import STOPPED
    from pipeline.training.loop import GAUGE

    named = set(re.findall(r"ray_(blindsr_\w+)", TEXT))
    assert named == {gauges.DONE, gauges.TOTAL, GAUGE, STOPPED}
