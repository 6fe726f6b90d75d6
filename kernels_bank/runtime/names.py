"""Printable spellings of file names with arbitrary bytes."""

from __future__ import annotations

import os
import unicodedata


def spelled(name: str) -> str:
    r"""Return a file's name with escapes for bytes that are not UTF-8 and for control characters.

    Otherwise a newline in a name would split a message, and an escape sequence would colour the terminal.

    >>> spelled("a\nb.png")
    'a\\nb.png'
    """
    text = os.fsencode(name).decode(errors="backslashreplace")
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) == "Cc" else c for c in text)
