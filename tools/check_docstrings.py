"""Check the language of docstrings: a first line begins with a verb, four or more parameters are described.

python tools/check_docstrings.py [FOLDER ...]

Looks at public classes, functions and methods. A verb that `VERBS` lacks is added there.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parents[1]
FOLDERS = ("kernels_bank", "pipeline", "jobs", "infra", "tools")
PARAMETERS = 4  # from so many on, an `Args:` section is due
VERBS = frozenset(
    "accept add agree allow answer append apply ask assert attach average be begin blend block blur book build "
    "calculate call cancel carry change check choose clear clip close collect combine compare complete compute "
    "connect convert copy correct correlate count cover create crop cut deal decide decode decrypt define degrade delete "
    "demand denoise describe detect divide do download draw drop embed enclose encode end ensure enumerate escape estimate "
    "evaluate examine exchange expand explain export extend extract fail fetch fill filter find finish fit fix flip "
    "flush fold follow format forward free gather generate get give go group guard hand handle have hide hold "
    "identify ignore import infer initialise insert inspect invert join judge keep know label launch lay leave let "
    "limit link list load locate lock log look make map mark mask match measure mend merge mix move multiply name normalise "
    "note notice offer open order override pack pad pair parse pass pick place plan plot point prepare present print "
    "process produce project promote protect prove pull push put quantise quantize raise read record redact reduce "
    "refine refuse register reject release remember remove rename renew replace reply report represent request "
    "reserve reset resize resolve restart restore resume retry return revert roll round run sample save say scale "
    "score search see select send serve set shift show shrink shut signal skip snap solve sort split standardise "
    "start state step stop store stream submit subtract sum supply take talk tell test tile time trace track train "
    "transform translate trim truncate try turn undo unfold update upload upsample use validate verify wait walk "
    "warn watch weigh work wrap write yield".split()
)


def problems(path: Path) -> Iterator[str]:
    """Yield a line for each docstring of a file that breaks a rule."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue  # ruff asks for those that are missing
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
    print("\n".join(found) if found else "docstrings: every first line begins with a verb, long signatures are described")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
