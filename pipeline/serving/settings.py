"""The settings of `jobs/serve.py`. Importing this module does not import torch, ray or mlflow."""

from __future__ import annotations

import ipaddress

from pydantic import ByteSize, Field, field_validator

from pipeline.config import Precision
from pipeline.frozen import Frozen
from pipeline.shipped import FOR_PHOTOGRAPHS


class ServeSettings(Frozen):
    """Choose a model, an address, and what a single request may cost."""

    model: str = Field(
        FOR_PHOTOGRAPHS,
        description="shipped:NAME, models:/NAME@ALIAS (followed when it is promoted), models:/NAME/VERSION, a folder",
    )
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for every network")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    max_upload: ByteSize = Field(ByteSize(32 * 2**20), gt=0, description="bytes of a request; more is answered by 413")
    max_pixels: int = Field(
        4_000_000, gt=0, description="pixels of an image, read off its header before anything is decoded; more: 413"
    )
    queue: int = Field(8, ge=0, description="requests of a replica that wait while one is restored; more: 429")
    timeout: float = Field(600, gt=0, description="seconds that a request may wait and be restored; longer: 504")
    upload_timeout: float = Field(60, gt=0, description="seconds in which a request must have arrived; longer: 408")
    uploads: int = Field(16, ge=1, description="requests whose bytes arrive at the same time; more: 429")
    transfers_per_client: int = Field(
        4,
        ge=1,
        description="requests of one address that arrive, and answers that it reads, at the same time; more: 429",
    )
    min_rate: ByteSize = Field(
        ByteSize(16 * 2**10), gt=0, description="bytes a second that a client sends or reads, after 5 s; slower: 408"
    )
    trusted_proxies: str = Field(
        "",
        description="addresses or networks, comma-separated, whose X-Forwarded-For names the client; default: nobody's",
    )
    poll: float = Field(5, gt=0, description="seconds between two looks at the alias")
    replicas: int = Field(
        1, ge=1, description="processes that restore; each takes a CPU, and a card if enough are there"
    )
    precision: Precision = Field(
        "auto",
        description="number format of the convolutions; auto: bf16 on a CPU that is clearly faster at it, as measured",
    )
    max_memory: ByteSize = Field(
        ByteSize(2 * 2**30), gt=0, description="memory of each replica; larger images are restored in windows"
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _addresses(cls, value: str) -> str:
        for part in filter(None, (part.strip() for part in value.split(","))):
            try:
                ipaddress.ip_network(part, strict=False)
            except ValueError as error:
                raise ValueError(f"'{part}' is no address or network, such as 127.0.0.1 or 10.0.0.0/8") from error
        return value
