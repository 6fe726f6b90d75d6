"""Download a published photograph set over HTTP; downloads resume where they stopped and are checked by hash."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kernels_bank.runtime import os_errors
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from kernels_bank.runtime.lease import Lease
from kernels_bank.runtime.output import own_output
from kernels_bank.runtime.progress import Progress
from kernels_bank.runtime.redact import mask_uri

_CHUNK = 1 << 20
_TIMEOUT_S = 30
# Waits after attempts that received nothing; any received byte restarts the sequence.
_RETRY_WAITS_S = (0.5, 2.0, 5.0, 15.0, 30.0)


@dataclass(frozen=True)
class Published:
    """Describe a file on the web, with its expected size and hash."""

    file: str
    bytes: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.file} ({self.bytes / 2**20:.0f} MiB)"


# DIV2K (Agustsson & Timofte, NTIRE 2017), high-resolution images: 800 for training, 100 for validation.
DIV2K_URL = "https://data.vision.ee.ethz.ch/cvl/DIV2K"
SETS = {
    "div2k-train": Published(
        "DIV2K_train_HR.zip", 3_530_603_713, "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335"
    ),
    "div2k-valid": Published(
        "DIV2K_valid_HR.zip", 448_993_893, "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc"
    ),
}


def download(published: Published, folder: Path, *, base_url: str = DIV2K_URL) -> Path:
    """Download a file to `folder`, or finish an earlier attempt; return its path. A complete file is only checked.

    Raises:
        BadRequestError: `base_url` is not the address of a server, the server does not have the file or keeps failing,
            the disk is too small, another process downloads to the folder, or the folder has a part of the file that
            this program did not download.
        ArtefactError: the downloaded file is not the published one.
    """
    check_base_url(base_url)
    target = folder / published.file
    if target.exists():
        if _sha256(target) != published.sha256:
            raise ArtefactError(
                f"{target}: is not the published file of this name; nothing was touched, choose another --downloads"
            )
        return target
    part = target.with_name(target.name + ".part")
    with own_output(str(folder), "folder of downloads", [part.name]) as lease:
        return _download(published, part, target, base_url, lease)


def check_base_url(url: str) -> None:
    """Check that this is the address of a folder on a web server. Raises BadRequestError."""
    try:
        parts = urlsplit(url)
        server = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:  # brackets without an address in them, or an invalid port
        server = False
    if not server or not url.isprintable() or " " in url:
        raise BadRequestError(f"--base-url {mask_uri(url)!r}: write http://HOST/FOLDER or https://, without a login")


def _download(published: Published, part: Path, target: Path, base_url: str, lease: Lease) -> Path:
    folder = part.parent
    have = part.stat().st_size if part.exists() else 0
    if shutil.disk_usage(folder).free < published.bytes - have:
        raise BadRequestError(f"{folder}: {published.bytes / 2**30:.1f} GiB are needed; choose another --downloads")
    url = f"{base_url.rstrip('/')}/{published.file}"
    with Progress(published.file, -(-published.bytes // _CHUNK), "MiB") as bar:
        bar.start_at(have // _CHUNK)
        failures = 0
        while have < published.bytes:
            before = have
            problem = _fetch(url, part, published, bar)
            have = part.stat().st_size if part.exists() else 0
            failures = 0 if have > before else failures + 1
            if failures > len(_RETRY_WAITS_S):
                raise BadRequestError(
                    f"{url}: {problem}; {have} of {published.bytes} bytes are in {part}, the same command resumes it"
                )
            if have < published.bytes:
                time.sleep(_RETRY_WAITS_S[max(0, failures - 1)])
    lease.check()
    if (found := _sha256(part)) != published.sha256:
        part.unlink()  # this program downloaded every byte of it
        raise ArtefactError(
            f"{part}: its sha256 {found[:16]}... is not the published {published.sha256[:16]}...; "
            "it was deleted, fetch it again or from another --base-url"
        )
    part.replace(target)
    return target


def _fetch(url: str, part: Path, published: Published, bar: Progress) -> str:
    """Request the missing bytes and append them to `part`; return why the request ended early, if it did."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            if have and answer.status != 206:  # a server without range requests sends everything again
                have = 0
                bar.start_at(0)
            coming = int(answer.headers.get("Content-Length") or published.bytes - have)
            if have + coming != published.bytes:
                raise ArtefactError(
                    f"{url}: the server's file has {have + coming} bytes, the published one {published.bytes}"
                )
            with os_errors.open_named(part, "ab" if have else "wb") as stream:
                while chunk := answer.read(_CHUNK):
                    stream.write(chunk)
                    bar.advance((have + len(chunk)) // _CHUNK - have // _CHUNK)
                    have += len(chunk)
        return "the connection was cut"
    except urllib.error.HTTPError as error:
        if error.code < 500 and error.code != 429:
            raise BadRequestError(f"{url}: the server says {error.code} {error.reason}") from error
        return f"the server says {error.code}"
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "filename", None) is not None:
            raise  # an error of this machine, not of the connection: a full disk, for instance
        return f"no connection ({error})"


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
