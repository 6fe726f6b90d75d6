"""The list of files to restore, the names of their results, and the results that already exist.

For each `NAME.EXT` in the input: `NAME-x2.png`, and next to it `NAME-x2.json`, `NAME-x2-kernel.png` and `.npy`,
`NAME-x2-compare.png`, and with `--kernel-field` `NAME-x2-field.png`. The JSON marks these files as ours; without it, a
file with one of these names is the user's own.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import unicodedata
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from kernels_bank.runtime import folders, storage, uris
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from kernels_bank.runtime.names import spelled
from pipeline.data.sources import Source, file_source, holds_images, list_sources, read_source
from pipeline.data.sources.source import plain
from pipeline.images import BadImageError
from pipeline.images.photograph import FORMAT_OF_SUFFIX, SUFFIX, Format
from pipeline.inference.settings import RestoreSettings

_BESIDE = (".json", "-kernel.npy", "-kernel.png", "-field.png", "-compare.png")


class RestoreJob(NamedTuple):
    """Name one file to restore, and its result."""

    source: Source
    target: str  # URI of the result without its suffix
    kind: Format

    @property
    def result(self) -> str:
        """Return the URI of the restored image."""
        return f"{self.target}{SUFFIX[self.kind]}"

    @property
    def report(self) -> str:
        """Return the URI of the JSON report of how the result was made."""
        return f"{self.target}.json"

    @property
    def outputs(self) -> list[str]:
        """List the URIs of all files that the job writes."""
        return [self.result, *(f"{self.target}{end}" for end in _BESIDE)]

    def name_problem(self) -> str | None:
        """Return why a local disk refuses the outputs' names: one is too long, or a folder's name is taken."""
        if uris.is_s3(self.target):
            return None
        paths = [PurePosixPath(output) for output in self.outputs]
        most = storage.LONGEST_NAME
        if (longest := max(len(os.fsencode(path.name)) for path in paths)) > most:
            return f"the names of its results have up to {longest} bytes, {most} are possible; use --name"
        if (longest := max(len(os.fsencode(part)) for part in paths[0].parent.parts)) > most:
            return f"a folder of its results has a name of {longest} bytes, {most} are possible; rename it"
        # Each file is first written under a temporary name.
        longest = max(len(os.fsencode(path.with_name(storage.temporary_name(path.name)))) for path in paths)
        if longest > storage.LONGEST_PATH:
            return f"the paths of its results have {longest} bytes, {storage.LONGEST_PATH} are possible; rename it"
        for folder in paths[0].parents:
            if os.path.lexists(folder) and not Path(folder).is_dir():
                return f"{folder}: is no folder, but its results belong in one of this name; choose another --output"
        return None


def list_jobs(settings: RestoreSettings) -> list[RestoreJob]:
    """List every image of the input with the place of its result; results of earlier calls are not inputs.

    Two images with the same stem, `a.jpg` and `a.png`, keep their suffix in the names of their results: `a.jpg-x2.png`.
    If the names are still equal, as members of a zip can be, they are numbered.

    Raises:
        BadRequestError: there are no images, two jobs would write the same file, or one would write outside the output.
    """
    root, output = uris.absolute(settings.input), uris.absolute(settings.output)
    if storage.is_file(root) and not holds_images(root):
        folder, name = root.rsplit("/", 1)
        # A key on S3 may have empty parts, which joining would drop.
        sources = [Source(root, spelled(name)) if uris.is_s3(root) else file_source(folder, name)]
    else:
        if uris.same_place(output, root):
            raise BadRequestError(f"--output {settings.output} is the input; results would be taken for photographs")
        sources = list_sources(root, leave_out=output, nested=False)
    jobs = [_job(source, stem, settings, output) for source, stem in zip(sources, _stems(sources), strict=True)]
    _refuse_collisions(jobs)
    return jobs


def _stems(sources: list[Source]) -> list[str]:
    """Return a stem for each result: the name without suffix, with suffix, or with a number, until all differ."""
    paths = [PurePosixPath(plain(source.name)) for source in sources]
    stems = [path.stem for path in paths]
    while True:
        places = [_place(path, stem) for path, stem in zip(paths, stems, strict=True)]
        uses = Counter(places)
        longer = [
            path.name if uses[place] > 1 else stem for path, stem, place in zip(paths, stems, places, strict=True)
        ]
        if longer == stems:
            break
        stems = longer
    taken: set[str] = set()
    for index, (path, stem) in enumerate(zip(paths, stems, strict=True)):
        number = itertools.count(2)
        while (place := _place(path, stems[index])) in taken:
            stems[index] = f"{stem}-{next(number)}"
        taken.add(place)
    return stems


def _place(path: PurePosixPath, stem: str) -> str:
    """Return what is the same for names that are one file on a disk that does not tell case, as those of macOS."""
    return unicodedata.normalize("NFC", f"{path.parent}/{stem}").casefold()


def _job(source: Source, stem: str, settings: RestoreSettings, output: str) -> RestoreJob:
    path = PurePosixPath(plain(source.name))
    if ".." in path.parts:
        raise BadRequestError(f"{source.name}: its result would lie outside --output {settings.output}; rename it")
    kind = FORMAT_OF_SUFFIX.get(path.suffix.lower(), "png") if settings.format == "same" else settings.format
    name = settings.name.format(stem=stem, scale=settings.scale)
    folder = [] if str(path.parent) == "." else [str(path.parent)]
    return RestoreJob(source, uris.join(output, *folder, name), kind)


def _refuse_collisions(jobs: list[RestoreJob]) -> None:
    """Check the names of all files before the first is written. Raises BadRequestError."""
    inputs = {job.source.uri for job in jobs if job.source.member < 0}
    writer: dict[str, RestoreJob] = {}
    for job in jobs:
        for output in job.outputs:
            if output in inputs:
                raise BadRequestError(f"{output} is the input itself; choose another --name or --output")
            if (other := writer.setdefault(output, job)) is not job:
                raise BadRequestError(
                    f"{other.source.name} and {job.source.name} would both write {output}; rename one, or choose "
                    "another --name"
                )
    for job in jobs:
        folder = job.target.rpartition("/")[0]
        while folder:
            if folder in writer:
                raise BadRequestError(
                    f"{writer[folder].source.name} would be written as {folder}, which is the folder of "
                    f"{job.source.name}'s result; choose another --name"
                )
            folder = folder.rpartition("/")[0]


def split_done(
    jobs: list[RestoreJob], settings: RestoreSettings, request: str
) -> tuple[list[RestoreJob], list[RestoreJob]]:
    """Split the jobs into pending jobs and those that the same command has finished before.

    Args:
        jobs: jobs of the input.
        settings: settings of the command.
        request: digest of all that affects a result except the image.

    Raises:
        BadRequestError: a file is in the way: it was made with other settings and `overwrite` is off, or not by this
            program.
    """
    output = uris.absolute(settings.output)
    present = {uris.join(output, name) for name, _ in folders.list_files(output, recursive=True)}
    todo, done = [], []
    for job in jobs:
        there = [output for output in job.outputs if output in present]
        report = _read_report(job) if job.report in present else None
        if there and report is None:
            raise BadRequestError(
                f"{there[0]} exists and no restoration made it; it stays as it is, choose another --output or --name"
            )
        if report is not None and job.result in present:
            if _made_by(report, job, request):
                done.append(job)
                continue
            if not settings.overwrite:
                raise BadRequestError(
                    f"{job.result} exists and this command did not make it; choose another --output or give --overwrite"
                )
        todo.append(job)
    return todo, done


def _read_report(job: RestoreJob) -> dict[str, Any] | None:
    """Return the existing report, if a restoration wrote it."""
    try:
        about = storage.read_json(job.report, nan=True)
    except ArtefactError:
        return None
    return about if isinstance(about, dict) and {"request", "input_sha256"} <= about.keys() else None


def _made_by(report: dict[str, Any], job: RestoreJob, request: str) -> bool:
    """Check whether a result was made by this request from exactly this image."""
    try:
        digest = hashlib.sha256(read_source(job.source)).hexdigest()
    except (ArtefactError, BadImageError):
        return False
    return bool(report["request"] == request and report["input_sha256"] == digest)
