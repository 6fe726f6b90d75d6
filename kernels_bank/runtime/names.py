"""How the name of a file is shown and used again, whatever bytes it has."""

from __future__ import annotations

import os
import unicodedata


def spelled(name: str) -> str:
    r"""Return a file's name with escapes for what is no text: bytes that are not UTF-8, and control characters.

    A newline in a name would make two lines of one, an escape sequence would colour the terminal.

    >>> spelled("a\nb.png")
    'a\\nb.png'
    """
    text = os.fsencode(name).decode(errors="backslashreplace")
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) == "Cc" else c for c in text)
