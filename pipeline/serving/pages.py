"""The two pages, each one self-contained file."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

# Everything is loaded from this server, and framing of the page is forbidden.
POLICY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@functools.cache
def main_page() -> str:
    """Return the main page, on which a user drops a photograph, compares and downloads."""
    return _templates().get_template("restore.html").render()


def docs_page(schema: dict[str, Any], base: str) -> str:
    """Return the OpenAPI description as a page; `base` is the server's URL as seen by the reader."""
    return _templates().get_template("docs.html").render(schema=schema, base=base)


@functools.cache
def _templates() -> Environment:
    return Environment(loader=FileSystemLoader(Path(__file__).parent / "page"), autoescape=True)
