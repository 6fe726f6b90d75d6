"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# One thread: the tests' tensors are small, and threads that wait for each other on a busy machine cost minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray gives its workers the lowest priority: beside the other tests' processes they would take minutes to start.
os.environ.setdefault("RAY_worker_niceness", "0")
# Where nothing compiled may be kept, as in many containers, every process that a test starts compiles all of this anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Every process that a test starts imports with fewer searches for garbage.
_STARTUP = str(Path(__file__).parent / "helpers" / "startup")
if _STARTUP not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_STARTUP, os.environ.get("PYTHONPATH"))))

# What a property's example takes says how busy the machine is, and nothing of the property.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and oracles that may lie beside the checkout; tests that need it skip without it."""
    folder = Path(__file__).parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the real data in {folder.name}/ beside the checkout")
    return folder


# What takes longest begins first, so that no process of `pytest -n 2` has minutes left when the other is done. The
# first needs at its end what the second makes for all.
_LONGEST = (
    "test_local_cluster",
    "test_nodes",
    "test_train_faults",
    "test_train",
    "test_quickstart",
    "test_examples",
    "test_types",
)
_EACH_ALONE = ("test_nodes", "test_train_faults")  # each test of these may run in another process


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group and order for `pytest -n 2 --dist loadgroup --no-loadscope-reorder`.

    A file's tests run in one process, and all those of the session's tracking server.
    """
    for item in items:
        group = item.path.stem
        if group in _EACH_ALONE:
            group = f"{group}-{item.name}"
        elif {"store", "tracking_server"}.intersection(getattr(item, "fixturenames", ())):
            group = "tracking_server"
        item.add_marker(pytest.mark.xdist_group(group))
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: _LONGEST.index(stem) if (stem := item.path.stem) in _LONGEST else len(_LONGEST))
