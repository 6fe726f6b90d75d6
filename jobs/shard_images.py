"""Cut photographs into WebDataset shards.

python jobs/shard_images.py --source DIR|ZIP|s3://... --output URI [--tile 480] [--shard-mib 128]
"""

from __future__ import annotations

from pydantic import Field

from pipeline.cli import Command, run
from pipeline.data.manifest import ShardSettings


class ShardImages(Command, ShardSettings):  # type: ignore[misc] # both carry a model_config
    """Photographs (folder, zip or s3:// prefix) to lossless WebDataset tars with a manifest."""

    source: str = Field("", description="folder (recursive), zip file, or s3:// prefix of images")
    output: str = Field(description="URI the shards are written to")
    max_bad_fraction: float = Field(0.01, ge=0, le=1, description="unusable images tolerated before the job stops")
    verify: bool = Field(False, description="re-hash and decode every sample under --output, and stop")
    check: bool = Field(False, description="list what would be sharded; write nothing")


def main(command: ShardImages) -> None:
    """Run the command."""
    from kernels_bank.runtime.progress import Progress
    from pipeline.data import manifest, sources

    if command.verify:
        shards = manifest.read_manifest(command.output)
        with Progress("verify", len(shards.train) + len(shards.validation), "shard") as bar:
            manifest.verify(command.output, lambda shard: bar.advance(note=shard.name))
        print(f"{command.output}: all hashes right, every sample decodes; digest {shards.digest}")
        return
    found = sources.list_sources(command.source)
    if command.check:
        print(f"{len(found)} image files, {found[0].name} ... {found[-1].name}; output {command.output}")
        return
    from pipeline.data.shards import make_shards

    settings = ShardSettings.model_validate(command.model_dump(include=set(ShardSettings.model_fields)))
    result, reused = make_shards(command.source, command.output, settings, max_bad_fraction=command.max_bad_fraction)
    state = "reused, nothing to do" if reused else "written"
    print(f"{command.output}: {state}; digest {result.digest}")
    print(
        f"  {result.images} images, {result.samples} training tiles in {len(result.train)} shards, "
        f"{len(result.validation)} validation shards, {len(result.skipped)} skipped"
    )
    for skipped in result.skipped:
        print(f"  skipped {skipped.name}: {skipped.reason}")


if __name__ == "__main__":
    run(ShardImages, main)
