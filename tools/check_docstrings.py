"""Check the language of docstrings: a first line begins with a verb, four or more parameters are described.

python tools/check_docstrings.py [FOLDER ...]

The check covers public classes, functions and methods. Add missing verbs to tools/verbs.txt.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parents[1]
FOLDERS = ("kernels_bank", "pipeline", "jobs", "infra", "tools")
PARAMETERS = 4  # from this number on, an `Args:` section is required
VERBS = frozenset((HERE / "tools" / "verbs.txt").read_text(encoding="utf-8").split())


def problems(path: Path) -> Iterator[str]:
    """Yield a line for each docstring of a file that breaks a rule."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue  # ruff reports missing docstrings
        where = f"{path.relative_to(HERE)}:{node.lineno} {node.name}"
        if (first := text.split()[0].strip("`,.:;").lower()) not in VERBS:
            yield f"{where}: begins with '{first}', not with a verb"
        if "guments as of" in text or "arguments as in" in text:
            yield f"{where}: sends the reader elsewhere for its arguments"
        if not isinstance(node, ast.ClassDef) and "Args:" not in text and len(_parameters(node)) >= PARAMETERS:
            yield f"{where}: has {len(_parameters(node))} parameters and no Args section"


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [argument.arg for argument in every if argument.arg not in {"self", "cls"}]


def main() -> None:
    """Print every problem; exit with 1 if there is one."""
    folders = sys.argv[1:] or FOLDERS
    found = [line for folder in folders for path in sorted((HERE / folder).rglob("*.py")) for line in problems(path)]
    print("\n".join(found) or "docstrings: first lines begin with a verb, long signatures are described")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
