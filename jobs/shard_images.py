"""Cut photographs into WebDataset shards.

python jobs/shard_images.py --source DIR|ZIP|TAR|PARQUET|LIST.txt|s3://... [--source ...] --output URI [--tile 480]
python jobs/shard_images.py --download div2k-train --output URI
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from kernels_bank.runtime import uris
from kernels_bank.runtime.errors import BadRequestError
from pipeline.cli import Command, run
from pipeline.data.download import DIV2K_URL, SETS, check_base_url, download
from pipeline.data.manifest import ShardSettings, described, verify
from pipeline.data.sources import Place


class ShardImages(Command, ShardSettings):  # type: ignore[misc] # both carry a model_config
    """Cut photographs into lossless WebDataset tars with a manifest."""

    source: str | tuple[str, ...] = Field(
        (),
        description="folder (recursive) or s3:// prefix of images or of tars, Parquet files and zips of images; one "
        "of these; or a .txt list of URIs; give it again for more",
    )
    column: str | None = Field(None, description="of the images in Parquet files; default: the only one of bytes")
    download: Literal["", "div2k-train", "div2k-valid"] = Field("", description="fetch this set and use it as --source")
    downloads: Annotated[Path, BeforeValidator(uris.local)] = Field(
        Path("downloads"), description="folder of this machine that fetched zips are kept in"
    )
    base_url: str = Field(DIV2K_URL, description="where they are fetched from")
    output: str = Field(description="URI the shards are written to")
    max_bad_fraction: float = Field(0.01, ge=0, le=1, description="unusable images tolerated before the job stops")
    verify: bool = Field(False, description="re-hash and decode every sample under --output, and stop")
    check: bool = Field(False, description="fetch nothing, write nothing: say what would be done")


def main(command: ShardImages) -> None:
    """Run the command."""
    if command.verify:
        print(f"{command.output}: all hashes right, every sample decodes\n{described(verify(command.output))}")
        return
    if bool(command.source) == bool(command.download):
        raise BadRequestError("the photographs come from --source or from --download; give one of them")
    sources = [command.source] if isinstance(command.source, str) else list(command.source)
    if command.check:
        from pipeline.data.shards import check_place, find_places

        output = uris.absolute(command.output)
        check_place(output)
    if command.download:
        if command.check:
            check_base_url(command.base_url)
            print(f"would fetch {SETS[command.download]} from {command.base_url} to {command.downloads}")
            return
        sources = [str(download(SETS[command.download], command.downloads, base_url=command.base_url))]
    if command.check:
        print(f"{_counted(find_places(sources, output))}; output {command.output}")
        return
    from pipeline.data.shards import make_shards

    settings = command.settings(ShardSettings)
    manifest, reused = make_shards(
        sources, command.output, settings, max_bad_fraction=command.max_bad_fraction, column=command.column
    )
    print(f"{command.output}: {'reused, nothing to do' if reused else 'written'}\n{described(manifest)}")


def _counted(places: list[Place]) -> str:
    """Return `40 image files, a.png ... z.png and 3 containers, a.tar ... c.tar`."""
    kinds = [
        ("image files", [p for p in places if not p.is_container]),
        ("containers", [p for p in places if p.is_container]),
    ]
    return " and ".join(
        f"{len(some)} {kind}, {some[0].name or some[0].uri} ... {some[-1].name or some[-1].uri}"
        for kind, some in kinds
        if some
    )


if __name__ == "__main__":
    run(ShardImages, main)
