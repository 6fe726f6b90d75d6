"""Records of a run, and their outbox in the run's folder for the time when the tracking server is unavailable."""

from __future__ import annotations

import base64
import io
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernels_bank.runtime import folders, scratch, storage, uris

if TYPE_CHECKING:
    from mlflow import MlflowClient

_IMAGES = "images"  # folder of a run's pictures for MLflow's UI
_POINTS = "points-"  # prefix of files of points; each logger of a run has its own file


@dataclass(frozen=True)
class Point:
    """Hold one value of one metric."""

    key: str
    value: float
    step: int
    timestamp: int  # ms


@dataclass(frozen=True)
class Picture:
    """Hold a picture that the UI shows as part of a series over steps.

    Its name is unique, so sending it twice does not duplicate it.
    """

    key: str
    step: int
    timestamp: int  # ms
    png: bytes = field(repr=False)
    name: str = field(default_factory=lambda: str(uuid.uuid4()))

    def send(self, api: MlflowClient, run_id: str, stem: str | None = None) -> None:
        """Store it as MLflow's `log_image` would. The full picture is last, so its presence means that all files exist.

        Args:
            api: client of the run's store.
            run_id: id of the run.
            stem: name of the files that an earlier logger began with.
        """
        from mlflow.tracking.multimedia import compress_image_size
        from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES
        from PIL import Image

        key = self.key.replace("/", "~")
        stem = stem or f"{key}+step+{self.step}+timestamp+{self.timestamp}+{self.name}"
        api.set_tag(run_id, MLFLOW_LOGGED_IMAGES, True)
        with scratch.temporary("picture") as folder:
            small, whole = Path(folder, f"{stem}+compressed.webp"), Path(folder, f"{stem}.png")
            compress_image_size(Image.open(io.BytesIO(self.png))).save(small)
            whole.write_bytes(self.png)
            for file in (small, whole):
                api.log_artifact(run_id, str(file), _IMAGES)

    def __str__(self) -> str:
        return f"picture '{self.key}' of step {self.step}"


@dataclass(frozen=True)
class Tag:
    """Hold a tag of the run."""

    key: str
    value: str
    name: str = field(default_factory=lambda: str(uuid.uuid4()))

    def send(self, api: MlflowClient, run_id: str) -> None:
        """Set the tag."""
        api.set_tag(run_id, self.key, self.value)

    def __str__(self) -> str:
        return f"tag '{self.key}'"


class Outbox:
    """Keep unsent records in the folder `unsent/RUN` of a run's folder, on a disk or on S3.

    It may contain records that were already sent, if a kill came between sending and deleting. Kept records that were
    not sent are never missing.
    """

    def __init__(self, home: str, run_id: str) -> None:
        self.folder = uris.join(home, "unsent", run_id)
        self._points = f"{_POINTS}{uuid.uuid4()}.json"
        self._names: set[str] = set()  # names of the existing files

    def load(self) -> tuple[list[Point], list[Picture | Tag], list[str]]:
        """Return the records left by earlier loggers, in recorded order, and the names of unreadable files.

        Raises:
            OSError: the storage cannot be reached.
        """
        points: list[Point] = []
        files: list[tuple[int, Picture | Tag]] = []
        problems: list[str] = []
        for name, _ in folders.list_files(self.folder):
            try:
                content = storage.read_json(uris.join(self.folder, name), nan=True)
                if name.startswith(_POINTS):
                    points += [Point(*values) for values in content]
                else:
                    files.append((int(content["order"]), _read(content)))
            except (ValueError, KeyError, TypeError) as error:
                problems.append(f"{uris.join(self.folder, name)} cannot be sent and stays there: {error}")
            else:
                self._names.add(name)
        points.sort(key=lambda point: (point.step, point.timestamp))
        return points, [item for _, item in sorted(files, key=lambda entry: entry[0])], problems

    def keep(self, points: Sequence[Point], files: Sequence[Picture | Tag]) -> None:
        """Store all of these records in the folder. Raises OSError if it cannot be written to."""
        if points:
            rows = [[p.key, p.value, p.step, p.timestamp] for p in points]
            storage.write_bytes(uris.join(self.folder, self._points), json.dumps(rows).encode())
            self._names.add(self._points)
        for order, item in enumerate(files):
            name = f"{item.name}.json"
            if name not in self._names:
                storage.write_json(uris.join(self.folder, name), _written(item) | {"order": order})
                self._names.add(name)

    def forget_points(self) -> None:
        """Delete all points after they were sent. Raises OSError if they cannot be deleted."""
        for name in [name for name in self._names if name.startswith(_POINTS)]:
            self._forget(name)

    def forget(self, item: Picture | Tag) -> None:
        """Delete a record that was sent. Raises OSError if it cannot be deleted."""
        if (name := f"{item.name}.json") in self._names:
            self._forget(name)

    def _forget(self, name: str) -> None:
        storage.remove_file(uris.join(self.folder, name))
        self._names.discard(name)
        if not self._names and not folders.list_files(self.folder):
            folders.remove_folder(self.folder)


def recorded_pictures(api: MlflowClient, run_id: str) -> tuple[set[tuple[str, int]], dict[tuple[str, int], str]]:
    """Find a run's pictures by MLflow's file names, `images/KEY+step+STEP+timestamp+...`.

    Returns:
        (key, step) of complete pictures, and the file stem of pictures that a kill left incomplete.
    """
    whole: set[tuple[str, int]] = set()
    begun: dict[tuple[str, int], str] = {}
    for info in api.list_artifacts(run_id, _IMAGES):
        stem, _, suffix = info.path.removeprefix(f"{_IMAGES}/").rpartition(".")
        parts = stem.split("+")
        if len(parts) > 3 and parts[1] == "step" and parts[2].isdecimal():
            picture = (parts[0].replace("~", "/"), int(parts[2]))
            if suffix == "png":
                whole.add(picture)
            else:
                begun[picture] = stem.removesuffix("+compressed")
    return whole, begun


def _written(item: Picture | Tag) -> dict[str, Any]:
    if isinstance(item, Tag):
        return {"tag": item.key, "value": item.value, "name": item.name}
    png = base64.b64encode(item.png).decode()
    return {"picture": item.key, "step": item.step, "timestamp": item.timestamp, "name": item.name, "png": png}


def _read(content: dict[str, Any]) -> Picture | Tag:
    if "tag" in content:
        return Tag(content["tag"], content["value"], content["name"])
    png = base64.b64decode(content["png"])
    return Picture(content["picture"], content["step"], content["timestamp"], png, content["name"])
