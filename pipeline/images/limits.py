"""How much of an image file is looked at."""

from __future__ import annotations

# 179 million: Pillow's own limit, beyond which it refuses to look further.
MAX_PIXELS = 178_956_970
MAX_SIDE = 2**20  # OpenCV's
MOST_SCANS = 100  # of a progressive JPEG; its 64 coefficients sent bit by bit need fewer
MOST_ICC = 16 * 2**20
MOST_EXIF = 16 * 2**20
MOST_XMP = 4 * 2**20


def bounded(body: bytes | None, most: int) -> bytes | None:
    """Return these bytes if there are any, and no more than `most`."""
    return body if body and len(body) <= most else None
