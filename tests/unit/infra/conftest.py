"""What kustomize would make of an overlay: the part of it that infra/kuberay uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).parents[3]
KUBERAY = REPO / "infra/kuberay"
_KNOWN = {"apiVersion", "kind", "namespace", "resources", "images", "patches"}
_CLUSTER_WIDE = {"Namespace"}


def build(folder: Path) -> list[dict]:
    """`kustomize build`: resources, namespace, image tags, JSON patches that add."""
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert plan.keys() <= _KNOWN, f"{folder}: teach this resolver {plan.keys() - _KNOWN}"
    objects = []
    for name in plan["resources"]:
        path = folder / name
        objects += build(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for patch in plan.get("patches", []):
        target = patch["target"]
        hit = [o for o in objects if o["kind"] == target["kind"] and o["metadata"]["name"] == target["name"]]
        assert len(hit) == 1, f"{folder}: the patch's target {target} is not there once"
        for operation in yaml.safe_load((folder / patch["path"]).read_text()):
            apply_add(hit[0], operation)
    for image in plan.get("images", []):
        for container in containers(objects):
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    for item in objects:
        if item["kind"] not in _CLUSTER_WIDE:
            item["metadata"]["namespace"] = plan["namespace"]
    return objects


def apply_add(item: Any, operation: dict) -> None:
    assert operation["op"] == "add", operation
    *parents, last = operation["path"].strip("/").split("/")
    for key in parents:
        item = item[key]
    assert last == "-"
    assert isinstance(item, list)
    item.append(operation["value"])


def containers(value: Any) -> Iterator[dict]:
    """Every container in any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("containers", "initContainers"):
                yield from inner
            else:
                yield from containers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from containers(inner)


@pytest.fixture(params=["cpu", "gpu"])
def overlay(request: pytest.FixtureRequest) -> list[dict]:
    """The objects of an overlay."""
    return build(KUBERAY / request.param)


@pytest.fixture
def all_containers() -> Callable[[Any], Iterator[dict]]:
    return containers
