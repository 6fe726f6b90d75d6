"""The settings of `jobs/restore.py`. Importing this module does not import torch, ray or mlflow."""

from __future__ import annotations

import string
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import ByteSize, Field, field_validator, model_validator

from kernels_bank.runtime.names import spelled
from pipeline.config import Precision, Share, Sigma
from pipeline.frozen import Frozen
from pipeline.model_config import Scale
from pipeline.shipped import FOR_PHOTOGRAPHS

DEFAULT_QUALITY = 95


class RestoreSettings(Frozen):
    """Choose images, a model, and how the results are made and named."""

    model: str = Field(
        FOR_PHOTOGRAPHS,
        description="shipped:NAME, models:/NAME@ALIAS, models:/NAME/VERSION, a model folder, or a USRNet .pth",
    )
    input: str = Field(description="an image, or a folder, zip, tar, Parquet file, .txt list or s3:// prefix of images")
    output: str = Field(description="folder or s3:// prefix for the results")
    scale: Scale = Field(2, description="factor by which the image becomes larger")
    sigma: Literal["auto"] | Sigma = Field("auto", description="noise level, [0, 1] scale: 2.55/255 is 0.01")
    kernel: str | None = Field(
        None, description="the blur kernel if it is known: a file (.npy, .npz, .mat, .png) or bank:URI#INDEX"
    )
    kernel_field: bool = Field(
        False,
        description="a kernel for every place, for blur that varies across the picture; many times the work",
    )
    x0: str | None = Field(
        None, description="where the restoration starts: nearest, bicubic, or another model's result; default: its own"
    )
    strength: float = Field(
        1, ge=0, le=1, description="how much of the blur is undone: 0 is close to a plain enlargement, 1 is full"
    )
    trust: Literal["auto"] | Share = Field(
        "auto",
        description="share of the restoration in the result, the rest is a plain enlargement; auto: as the model "
        "judges where it estimated the blur itself",
    )
    self_ensemble: bool = Field(False, description="mean over eight flips and quarter turns: eight times the work")
    precision: Precision = Field(
        "auto",
        description="number format of the convolutions; auto: bf16 on a CPU that is clearly faster at it, as measured",
    )
    max_memory: ByteSize = Field(
        ByteSize(2 * 2**30), gt=0, description="memory of each worker; larger images are restored in windows"
    )
    format: Literal["png", "jpeg", "webp", "tiff", "same"] = Field("png", description="of the results")
    depth: Literal["same", "8", "16"] = Field("same", description="bits of a channel; jpeg and webp have 8")
    quality: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None,
        description="of jpeg and webp, 100 is lossless for webp; default: a JPEG of --format same is written as its "
        f"input was, others with {DEFAULT_QUALITY}",
    )
    strip_metadata: bool = Field(False, description="leave EXIF and XMP out of the results; colour profiles stay")
    name: str = Field("{stem}-x{scale}", description="name of a result without its suffix")
    overwrite: bool = Field(False, description="replace files that are there and were made otherwise")
    workers: int = Field(1, ge=1, description="processes that restore, on the Ray cluster if more than one")

    @model_validator(mode="after")
    def _kernels_are_given_or_estimated(self) -> RestoreSettings:
        if self.kernel_field and self.kernel is not None:
            raise ValueError("kernel_field estimates the kernels; leave out --kernel or --kernel-field")
        return self

    @field_validator("name")
    @classmethod
    def _name_is_one(cls, value: str) -> str:
        try:
            parts = [part for part in string.Formatter().parse(value) if part[1] is not None]
        except ValueError as error:
            raise ValueError(f"'{value}' is no template ({error}); such as {{stem}}-x{{scale}}") from error
        fields = {field for _, field, _, _ in parts}
        if "stem" not in fields or fields - {"stem", "scale"} or any(form or change for _, _, form, change in parts):
            raise ValueError(f"'{value}': {{stem}} is needed, {{scale}} can be in it, and nothing else in braces")
        if spelled(value) != value:
            raise ValueError(f"{value!r} is not UTF-8, or holds control characters")
        if PurePosixPath(value).name != value or value.startswith("."):
            raise ValueError(f"'{value}': a file name is expected; --output says where")
        return value
