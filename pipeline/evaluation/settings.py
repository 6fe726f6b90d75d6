"""The settings of an evaluation, in a module that is quick to import for a command's --help."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from kernels_bank.distinct import distinct
from pipeline.config import Format
from pipeline.frozen import Frozen
from pipeline.model_config import Scale


class EvaluationSettings(Frozen):
    """Choose what is compared on what."""

    model: str = Field(
        description="shipped:NAME, models:/NAME@ALIAS, models:/NAME/VERSION, a model or checkpoint directory, a .pth"
    )
    images: str = Field(description="folder or s3:// prefix of sharp images")
    kernels: str = Field(
        "benchmark", description="the protocol's own or the 12 built-in ones, or a .mat, .npy, .npz or .png of kernels"
    )
    scales: Annotated[tuple[Scale, ...] | None, AfterValidator(distinct)] = Field(
        None, description="default: all that the model was made for"
    )
    protocol: str = Field(
        "usrnet-table1",
        description="usrnet-table1, float, dan-gaussian8, camera-area, camera-bicubic, these two with -q95, -q85 or "
        "-q70, or a YAML file",
    )
    precision: Format = Field(
        "float32", description="number format of the convolutions; bf16 moves a PSNR by about 0.01 dB"
    )
    compare: tuple[str, ...] = Field((), description="other models to show beside, by URI")
