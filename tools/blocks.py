"""Replacement of the parts of pages that a command writes, which are between two marks."""

from __future__ import annotations

import re
from pathlib import Path


def write_block(page: Path, command: str, text: str) -> None:
    """Replace the part of a page that a command writes. Raises ValueError if the page has no such part."""
    page.write_text(with_block(page.read_text(encoding="utf-8"), command, text), encoding="utf-8")


def with_block(page: str, command: str, text: str) -> str:
    """Return the page with `text` between `<!-- python -m COMMAND -->` and `<!-- end -->`.

    Args:
        page: whole text of the page.
        command: module that writes the part, such as `tools.article`.
        text: the new part in Markdown.

    Raises:
        ValueError: the page has no such marks.
    """
    marks = (f"<!-- python -m {command} -->", "<!-- end -->")
    pattern = re.compile(re.escape(marks[0]) + ".*?" + re.escape(marks[1]), re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"{marks[0]} ... {marks[1]} is expected")
    return pattern.sub(lambda _: f"{marks[0]}\n{text}\n{marks[1]}", page)
