"""Parts of pages that a command writes: what stands between two marks is replaced."""

from __future__ import annotations

import re


def with_block(page: str, command: str, text: str) -> str:
    """Return the page with `text` between `<!-- python -m COMMAND -->` and `<!-- end -->`.

    Args:
        page: whole text.
        command: the module that writes the part, `tools.article`.
        text: Markdown.

    Raises:
        ValueError: the page has no such marks.
    """
    marks = (f"<!-- python -m {command} -->", "<!-- end -->")
    pattern = re.compile(re.escape(marks[0]) + ".*?" + re.escape(marks[1]), re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"{marks[0]} ... {marks[1]} is expected")
    return pattern.sub(lambda _: f"{marks[0]}\n{text}\n{marks[1]}", page)
