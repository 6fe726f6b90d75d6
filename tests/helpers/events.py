"""Server-sent events, read."""

from __future__ import annotations

import json
from typing import Any


def parse(body: bytes) -> list[tuple[str, Any]]:
    """Read (event, data) in their order; comments are left out."""
    found = []
    for block in body.decode().split("\n\n"):
        if block and not block.startswith(":"):
            name, data = block.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found
