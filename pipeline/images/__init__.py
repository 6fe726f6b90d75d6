"""Image files to pixels and back: formats, depths, channels, metadata. Outside of this package all colours are RGB."""

from __future__ import annotations


class BadImageError(ValueError):
    """Report an image that cannot be used; the text is the reason, without the file's name."""
