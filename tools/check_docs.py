"""Check the pages: no line is wider than 120 columns, and every link leads to an existing file and heading.

python tools/check_docs.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parents[1]
WIDTH = 120
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def problems(page: Path) -> Iterator[str]:
    """Yield a line for each wide line and each broken link of a page."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(HERE)
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > WIDTH:
            yield f"{name}:{number}: {len(line)} columns"
    for link in _LINK.findall(_FENCE.sub("", text)):
        target, _, heading = link.partition("#")
        if "://" in target:
            continue
        file = page.parent / target if target else page
        if not file.exists():
            yield f"{name}: {link} leads nowhere"
        elif heading and heading not in anchors(file.read_text(encoding="utf-8")):
            yield f"{name}: {link}: no such heading"


def anchors(text: str) -> set[str]:
    r"""Return the anchors of headings on a web page of this text.

    >>> sorted(anchors("# Time and memory\n## What `auto` does, exactly"))
    ['time-and-memory', 'what-auto-does-exactly']
    """
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def main() -> None:
    """Print every problem; exit with 1 if there is one."""
    pages = [*sorted(HERE.glob("*.md")), *sorted((HERE / "docs").glob("*.md"))]
    found = [line for page in pages for line in problems(page)]
    print("\n".join(found) or "docs: no wide line, no broken link")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
