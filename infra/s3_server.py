"""An S3 test server whose objects outlive it: moto answers, and a file on disk has each object before its writer knows.

moto alone keeps everything in memory; a restart would lose what a run has stored, which no real server does. For a
cluster on one machine and for tests: it checks no credentials, and uploads in parts that are under way do not survive.

    python infra/s3_server.py --port 9000 --folder DIR [--bucket NAME]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from moto.core import DEFAULT_ACCOUNT_ID
from moto.core.exceptions import ServiceException
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import run_simple


class KeptOnDisk:
    """Wrap moto's WSGI application. A file has a line of JSON, {"key": ...}, followed by the object's bytes."""

    def __init__(self, folder: Path) -> None:
        self._moto, self._folder = DomainDispatcherApplication(create_backend_app), folder
        self._backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        self._conditional = threading.Lock()  # moto checks whether an object exists and then writes it, without a lock
        for bucket in sorted(path for path in folder.iterdir() if path.is_dir()):
            self._backend.create_bucket(bucket.name, "us-east-1")
            for file in bucket.glob("*.object"):
                head, _, body = file.read_bytes().partition(b"\n")
                self._backend.put_object(bucket.name, json.loads(head)["key"], body)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request, after its changes are on disk."""
        method, query = environ["REQUEST_METHOD"], parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
        path = environ["PATH_INFO"].encode("latin-1").decode()
        conditional = "HTTP_IF_NONE_MATCH" in environ or "HTTP_IF_MATCH" in environ
        with self._conditional if method == "PUT" and conditional else contextlib.nullcontext():
            answer = self._moto(environ, start_response)
        if method == "DELETE" or (method == "PUT" and "partNumber" not in query) or method == "POST":
            bucket, _, key = path.lstrip("/").partition("/")
            self._keep(bucket, key)
        return answer

    def make_bucket(self, name: str) -> None:
        """Create a bucket if it does not exist."""
        if name not in self._backend.buckets:
            self._backend.create_bucket(name, "us-east-1")
            self._keep(name, "")

    def _keep(self, bucket: str, key: str) -> None:
        """Update the disk from moto for one key, or for the set of keys."""
        held, folder = self._backend.buckets.get(bucket), self._folder / bucket
        if held is None:
            return
        folder.mkdir(exist_ok=True)
        if key:
            self._write(folder, key, held.keys.get(key))
        else:  # a request to the bucket itself, such as the deletion of several objects
            known = {_file_name(name) for name in list(held.keys)}
            for file in folder.glob("*.object"):
                if file.name not in known:
                    file.unlink(missing_ok=True)

    def _write(self, folder: Path, key: str, found: Any) -> None:  # noqa: ANN401 - moto's FakeKey
        file = folder / _file_name(key)
        if found is None:
            file.unlink(missing_ok=True)
            return
        temporary = file.with_name(f".{file.name}.{os.urandom(4).hex()}")
        temporary.write_bytes(json.dumps({"key": key}).encode() + b"\n" + found.value)
        temporary.replace(file)


def _file_name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest() + ".object"


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="where the objects are kept")
    parser.add_argument("--bucket", help="made when it is not there")
    arguments = parser.parse_args()
    if not 0 <= arguments.port < 2**16:
        parser.error(f"--port {arguments.port}: a port is a number from 0, which is any free one, to {2**16 - 1}")
    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        application = KeptOnDisk(arguments.folder)
        if arguments.bucket:
            application.make_bucket(arguments.bucket)
    except (OSError, ValueError, KeyError, ServiceException) as error:  # a file there is not a bucket or an object
        parser.error(
            f"--folder {arguments.folder}: {getattr(error, 'strerror', None) or f'not of this server ({error})'}"
        )
    run_simple("127.0.0.1", arguments.port, application, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main()
