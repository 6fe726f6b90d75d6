"""The two pages, each one file that asks for nothing from elsewhere."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

# Nothing is loaded but from this server, and nobody may frame the page.
POLICY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@functools.cache
def main_page() -> str:
    """Drop a photograph, compare, download."""
    return _templates().get_template("restore.html").render()


def docs_page(schema: dict[str, Any], base: str) -> str:
    """Write the OpenAPI description for people; `base` is the server's own URL as the reader knows it."""
    return _templates().get_template("docs.html").render(schema=schema, base=base)


@functools.cache
def _templates() -> Environment:
    return Environment(loader=FileSystemLoader(Path(__file__).parent / "page"), autoescape=True)
