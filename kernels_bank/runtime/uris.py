"""The URIs of a user's places: local paths, `file://` and `s3://`. Only `same_place` accesses the file system."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.s3 import bucket_and_key


def path_of(uri: str | Path) -> str:
    """Return the path of a URI inside its filesystem.

    Raises:
        BadRequestError: the URI is neither a local path, `file://` nor `s3://`, or an S3 key has empty parts, which
            users of filesystems would drop.
    """
    text = str(uri)
    if "\0" in text or (text.startswith("file:/") and "%00" in text):
        raise BadRequestError(f"{text!r}: holds a zero byte, which no name has")
    if text.startswith("s3:/") and not text.startswith("s3://"):
        raise BadRequestError(f"{text}: an S3 URI begins with s3://")
    if text.startswith("file:/"):
        return _file_path(text)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return str(at_home(text).absolute())
    if scheme == "s3":
        bucket, key = bucket_and_key(text)
        if "" in key.split("/") and key:
            raise BadRequestError(f"{text}: has an empty part between two slashes; choose another place")
        return f"{bucket}/{key}".rstrip("/")
    raise BadRequestError(f"{text}: unknown scheme '{scheme}'; use a local path, file:// or s3://bucket/prefix")


def at_home(path: str) -> Path:
    """Return a path with `~` or `~user` replaced by the home folder; without such a user it is a file's name.

    Raises:
        BadRequestError: the path begins with `~` and this user has no home folder.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111 - Path's raises if there is no such user
    if expanded == "~" or expanded.startswith("~/"):
        raise BadRequestError(f"{path}: this user has no home folder; set HOME, or write the whole path")
    return Path(expanded)


def _file_path(uri: str) -> str:
    """Return the path of `file:///path`, `file://localhost/path` or `file:/path`."""
    rest = uri.removeprefix("file:")
    if rest.startswith("//"):
        host, _, rest = rest.removeprefix("//").partition("/")
        if host not in {"", "localhost"}:
            raise BadRequestError(f"{uri}: names the machine '{host}'; write file:///path for a file of this one")
        rest = f"/{rest}"
    return unquote(rest, errors="surrogateescape")


def is_s3(uri: str | Path) -> bool:
    """Return whether this is an `s3://` URI. Raises BadRequestError for an unknown scheme."""
    if str(uri).startswith("s3://"):
        return True
    path_of(uri)
    return False


def local(uri: str | Path) -> Path:
    """Return the path of a place that has to be on this machine. Raises BadRequestError for one on S3."""
    text = str(uri)
    if is_s3(text):
        raise BadRequestError(f"{text}: a folder of this machine is expected")
    return Path(_file_path(text)) if text.startswith("file:/") else at_home(text)


def absolute(uri: str | Path) -> str:
    """Return the URI in a form that does not depend on the working directory; `file://` becomes a plain path."""
    text = str(uri)
    if "://" in text and not text.startswith("file:/"):
        return text.rstrip("/")
    return path_of(text).rstrip("/") or "/"


def refuse_odd_name(uri: str | Path) -> None:
    """Refuse a place to write to whose name is not valid text. Raises BadRequestError.

    Files of any name can be read, but Ray, Arrow and MLflow only accept names that are text.
    """
    try:
        absolute(uri).encode()
    except UnicodeEncodeError as error:
        raise BadRequestError(
            f"{uri}: this name is not UTF-8, nothing is written there; choose another place"
        ) from error


def join(uri: str | Path, *parts: str) -> str:
    """Join a URI and names below it: `join("s3://b/x", "y.json") == "s3://b/x/y.json"`; the same for local paths."""
    return "/".join([str(uri).rstrip("/"), *parts])


def same_place(one: str, other: str) -> bool:
    """Return whether two URIs are the same place, after resolving links."""
    if is_s3(one) or is_s3(other):
        return absolute(one) == absolute(other)
    return os.path.realpath(path_of(one)) == os.path.realpath(path_of(other))
