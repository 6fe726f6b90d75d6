"""What a request asks for, read and checked before anything is decoded."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

from fastapi import Request
from pydantic import Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.types import Message, Receive

from kernels_bank.runtime.errors import BadRequestError
from pipeline.config import Frozen, Scale, Sigma
from pipeline.images.header import read_header
from pipeline.serving.settings import ServeSettings

_FIELDS = 16  # of a form: more than it needs, and no flood


class Wishes(Frozen):
    """The query parameters, which a form may give as fields as well."""

    scale: Scale | None = Field(
        None, description="factor by which the image becomes larger; default: the model's first"
    )
    sigma: Literal["auto"] | Sigma = Field("auto", description="noise level, [0, 1] scale; auto: estimated")
    format: Literal["png", "json"] | None = Field(
        None, description="of the answer; default: json if the request accepts application/json, else png"
    )
    pictures: bool = Field(False, description="json only: also the input and its bicubic enlargement, as 8-bit PNGs")


@dataclass(frozen=True)
class Order:
    """An encoded image within the limits, and what is to be done with it."""

    image: bytes
    wishes: Wishes


class TooLargeError(Exception):
    """More bytes or pixels than the server takes."""


class SlowError(Exception):
    """The request did not arrive in time."""


def check_length(request: Request, settings: ServeSettings) -> None:
    """Refuse a request by what it says of its own size. Raises TooLargeError."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > settings.max_upload:
        raise TooLargeError(_too_many_bytes(settings))


async def read_order(request: Request, settings: ServeSettings) -> Order:
    """The order of a request: an image as the body itself, or as a file in a form.

    Raises:
        TooLargeError: too many bytes or pixels; reading stops there.
        SlowError: it did not arrive in time.
        BadRequestError: not a form that can be read, no image in it, or unknown or wrong parameters.
        BadImageError: not an image that can be restored.
    """
    limited = Request(request.scope, _limited(request.receive, settings))
    try:
        async with asyncio.timeout(settings.upload_timeout):
            if request.headers.get("content-type", "").startswith("multipart/form-data"):
                image, fields = await _form(limited)
            else:
                image, fields = await limited.body(), {}
    except TimeoutError as error:
        raise SlowError(f"the request did not arrive within {settings.upload_timeout:g} s") from error
    if not image:
        raise BadRequestError("no image: send it as the body, or as a file of a form")
    header = read_header(image)
    if header.height * header.width > settings.max_pixels:
        raise TooLargeError(
            f"{header.width} x {header.height} is {header.width * header.height / 1e6:.1f} megapixels; "
            f"this server takes {settings.max_pixels / 1e6:.3g}"
        )
    wishes = checked({**request.query_params, **fields})
    if wishes.format is None:
        accepts = request.headers.get("accept", "")
        wishes = wishes.model_copy(update={"format": "json" if "application/json" in accepts else "png"})
    return Order(image, wishes)


def checked(values: dict[str, str]) -> Wishes:
    """The parameters, validated. Raises BadRequestError that names every wrong one."""
    try:
        return Wishes.model_validate(values)
    except ValidationError as error:
        wrong = {str(item["loc"][0]): item for item in error.errors()}
        known = ", ".join(Wishes.model_fields)
        lines = [
            f"{name}: unknown parameter; there is {known}"
            if item["type"] == "extra_forbidden"
            else f"{name}: {item['msg']} (got {str(item['input'])[:40]!r})"
            for name, item in wrong.items()
        ]
        raise BadRequestError("; ".join(lines)) from error


async def _form(request: Request) -> tuple[bytes, dict[str, str]]:
    """The first file of a form, whatever its field and its file are called, and the other fields."""
    async with request.form(max_files=1, max_fields=_FIELDS) as form:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        return (await files[0].read() if files else b""), fields


def _limited(receive: Receive, settings: ServeSettings) -> Receive:
    """`receive` that counts, whatever length was announced."""
    count = 0

    async def counted() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > settings.max_upload:
            raise TooLargeError(_too_many_bytes(settings))
        return message

    return counted


def _too_many_bytes(settings: ServeSettings) -> str:
    return f"the request is larger than {settings.max_upload.human_readable()}, the limit of this server"
