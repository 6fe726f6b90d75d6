"""What `ray job submit --working-dir .` sends: what a job needs, and little else."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[3]
LARGEST = 100 * 2**20  # Ray's own limit


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """File -> bytes, of the archive that Ray makes of the checkout."""
    from ray._private.runtime_env.packaging import create_package

    target = tmp_path_factory.mktemp("package") / "package.zip"
    create_package(str(REPO), target, include_gitignore=True, excludes=[])
    with zipfile.ZipFile(target) as archive:
        return {file.filename: file.file_size for file in archive.infolist()}


def test_code_configs_and_the_shipped_model_travel(package: dict[str, int]):
    needed = [path for folder in ("jobs", "kernels_bank", "pipeline") for path in (REPO / folder).rglob("*")]
    names = {p.relative_to(REPO).as_posix() for p in needed if p.is_file() and "__pycache__" not in p.parts}
    assert any(name.endswith(".safetensors") for name in names)
    assert names <= package.keys()


def test_what_is_large_stays_here(package: dict[str, int]):
    assert sum(package.values()) < LARGEST
    folders = {name.split("/")[0] for name in package if "/" in name}
    assert not folders & {"banks", "data", "docs", "examples", "runs", "shared", "tests", "tools", ".venv"}
