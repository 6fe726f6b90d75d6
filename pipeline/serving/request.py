"""Parsing and validation of a request, before any image is decoded."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from fastapi import Request
from pydantic import AfterValidator, Field, Json, Strict, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from pipeline.config import Share, Sigma
from pipeline.frozen import Frozen
from pipeline.images.header import read_header
from pipeline.model_config import Scale
from pipeline.serving.errors import GoneError, RequestError, TooLargeError
from pipeline.serving.media import accepts_events, accepts_json, boundary
from pipeline.serving.settings import ServeSettings

_FIELDS = 16  # most fields of a form, more than it needs
_SIDES = range(1, 100, 2)  # sides of a kernel
_SUM, _ROUNDING = 1.0, 1e-3
_MASS = 4.0  # sum of |k|: an estimated kernel may have small negative lobes


@np.errstate(over="ignore", invalid="ignore")  # values whose sum overflows are refused below
def _kernel(rows: list[list[float]]) -> list[list[float]]:
    """Check a client's kernel. Raises ValueError."""
    side = len(rows)
    if side not in _SIDES or any(len(row) != side for row in rows):
        raise ValueError(f"rows of equal length are expected, an odd number up to {_SIDES[-1]} of both")
    values = np.array(rows)
    if not abs(values.sum() - _SUM) <= _ROUNDING or np.abs(values).sum() > _MASS:
        raise ValueError("the sum of a kernel's values is 1")
    return rows


# Strict: a text or a truth value is no number.
Kernel = Annotated[Json[list[list[Annotated[float, Strict()]]]], AfterValidator(_kernel)]


class RestoreOptions(Frozen):
    """Hold the query parameters, which a form may give as fields as well."""

    scale: Scale | None = Field(
        None, description="factor by which the image becomes larger; default: the model's first"
    )
    sigma: Literal["auto"] | Sigma = Field("auto", description="noise level, [0, 1] scale; auto: estimated")
    strength: float = Field(1, ge=0, le=1, description="how much of the blur is undone: 0 is a plain enlargement")
    trust: Literal["auto"] | Share = Field(
        "auto",
        description="share of the restoration in the result, the rest is a plain enlargement; auto: as the model "
        "judges where it estimated the blur itself",
    )
    kernel: Kernel | None = Field(
        None,
        description="the blur kernel as JSON rows, such as an earlier answer's kernel: saves the estimate; best as a "
        "form's field",
    )
    format: Literal["png", "json"] | None = Field(
        None,
        description="of the answer; default: json if the request accepts application/json or text/event-stream, "
        "else png",
    )
    pictures: bool = Field(
        False,
        description="json only: also the input and its bicubic enlargement, as 8-bit PNGs; of a stream of events also "
        "each window of a large image when it is finished, as a JPEG",
    )


@dataclass(frozen=True)
class RestoreRequest:
    """Hold an encoded image within the limits, and the options of its restoration."""

    image: bytes
    options: RestoreOptions
    streamed: bool  # whether the answer is a stream of events


async def read_request(request: Request, settings: ServeSettings) -> RestoreRequest:
    """Read a request with an image as its body or as a file in a form.

    Raises:
        GoneError: the client disconnected.
        TooLargeError: the image has too many pixels.
        RequestError: the form is invalid or has no image, or parameters are unknown or wrong.
        BadImageError: the image cannot be restored.
    """
    try:
        body = await request.body()
    except ClientDisconnect as error:
        raise GoneError("the connection was closed before the request was there") from error
    if (encoding := request.headers.get("content-encoding", "identity").strip().lower()) not in {"", "identity"}:
        raise RequestError(f"Content-Encoding {encoding[:40]}: send the image as it is")
    form = boundary(request.headers.get("content-type", ""))
    image, fields = (body, []) if form is None else await _form(body, form)
    if not image:
        raise RequestError("no image: send it as the body, or as a file of a form")
    # In a thread, since a malicious file can take a second, during which no other client would be served.
    header = await asyncio.to_thread(read_header, image)
    if header.height * header.width > settings.max_pixels:
        raise TooLargeError(
            f"{header.width} x {header.height} is {header.width * header.height / 1e6:.1f} megapixels; "
            f"this server takes {settings.max_pixels / 1e6:.3g}"
        )
    options = checked([*request.query_params.multi_items(), *fields])
    streamed = accepts_events(request.headers.getlist("accept"))
    if streamed and options.format == "png":
        raise RequestError("format: a stream of events ends with json; leave out format=png, or accept image/png")
    if options.format is None:
        wants_json = streamed or accepts_json(request.headers.getlist("accept"))
        options = options.model_copy(update={"format": "json" if wants_json else "png"})
    return RestoreRequest(image, options, streamed)


def checked(given: list[tuple[str, str]]) -> RestoreOptions:
    """Validate the parameters. Raises RequestError, which names every invalid one."""
    values = dict(given)
    if twice := [name[:40] for name, count in Counter(name for name, _ in given).items() if count > 1]:
        raise RequestError("; ".join(f"{name}: given more than once" for name in twice))
    try:
        return RestoreOptions.model_validate(values)
    except ValidationError as error:
        wrong = {str(item["loc"][0]): item for item in error.errors()}
        known = ", ".join(RestoreOptions.model_fields)
        lines = [
            f"{name[:40]}: unknown parameter; there is {known}"
            if item["type"] == "extra_forbidden"
            else f"{name}: {item['msg']} (got {str(item['input'])[:40]!r})"
            for name, item in wrong.items()
        ]
        raise RequestError("; ".join(lines)) from error


async def _form(body: bytes, separator: bytes) -> tuple[bytes, list[tuple[str, str]]]:
    """Return the first file of a form, under any field name and file name, and the other fields.

    Raises:
        RequestError: the form cannot be parsed, or has too many parts.
    """

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    # Without the request's charset: forms have none (RFC 7578), and some names of charsets are not text encodings.
    headers = Headers(raw=[(b"content-type", b'multipart/form-data; boundary="' + separator + b'"')])
    parser = MultiPartParser(headers, stream(), max_files=1, max_fields=_FIELDS)
    parser.spool_max_size = len(body) + 1  # it is already in memory, so nothing is written to a disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(f"not a form that can be read: {error.message}") from error
    files = [value for value in form.values() if isinstance(value, UploadFile)]
    fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    try:
        return (await files[0].read() if files else b""), fields
    finally:
        await form.close()
