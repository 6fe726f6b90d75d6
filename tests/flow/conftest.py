"""Real components: a local Ray cluster, a small bank, shards of the bundled photographs, an S3 server over HTTP."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers import servers

if TYPE_CHECKING:
    from tests.flow.launcher import Local

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster(s3: str) -> Iterator[None]:
    """A local Ray for the whole session, stopped at its end; its processes inherit the S3 server's variables."""
    from kernels_bank.runtime.cluster import connect

    connect(min_cpus=4)
    yield
    import ray

    ray.shutdown()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`made_once(NAME, make)`: a folder that all processes of pytest-xdist share, filled by the first that wants it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"
    shared.mkdir(exist_ok=True)

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, mark = shared / name, shared / f"{name}.whole"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not mark.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                mark.touch()
        return folder

    return once


# What follows is only read by the tests. Making it takes a Ray, which a process that finds it made does not start.


@pytest.fixture(scope="session")
def photographs(made_once: Callable[..., Path]) -> Path:
    """Four real photographs."""
    pytest.importorskip("skimage")
    from pipeline.data.photographs import copy_photographs

    return made_once("photographs", copy_photographs) / "train"


@pytest.fixture(scope="session")
def bank(request: pytest.FixtureRequest, made_once: Callable[..., Path]) -> str:
    """A bank of 200 Gaussian and 200 motion kernels, 21 x 21."""
    from kernels_bank.generate import build_bank
    from kernels_bank.spec import KernelBankSpec

    def make(folder: Path) -> None:
        request.getfixturevalue("cluster")
        build_bank(KernelBankSpec(gaussian=200, motion=200), str(folder))

    return str(made_once("bank", make))


@pytest.fixture(scope="session")
def shards(request: pytest.FixtureRequest, photographs: Path, made_once: Callable[..., Path]) -> str:
    """The photographs as four shards of small tiles."""
    from pipeline.data.manifest import ShardSettings
    from pipeline.data.shards import make_shards

    def make(folder: Path) -> None:
        request.getfixturevalue("cluster")
        make_shards(str(photographs), str(folder), ShardSettings(tile=160, shard_mib=0.5))

    return str(made_once("shards", make))


@pytest.fixture(scope="session")
def undisturbed(
    request: pytest.FixtureRequest, shards: str, bank: str, empty_store: Path, made_once: Callable[..., Path]
) -> Path:
    """The output folder of a `small_run` that nothing happened to."""
    from pipeline.training.fit import fit
    from tests.flow.training_runs import small_run

    def make(folder: Path) -> None:
        request.getfixturevalue("cluster")
        shutil.copy(empty_store, folder / "mlflow.db")
        fit(small_run(shards, bank, str(folder)))

    return made_once("undisturbed", make)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """An S3 server over HTTP with a bucket `test`; the AWS variables of this process point at it."""
    import boto3

    with servers.s3_server() as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in servers.s3_variables(endpoint).items():
            patch.setenv(name, value)
        patch.delenv("AWS_CA_BUNDLE", raising=False)
        boto3.client("s3").create_bucket(Bucket="test")
        yield endpoint


@pytest.fixture(scope="session")
def empty_store(made_once: Callable[..., Path]) -> Path:
    """An SQLite file with MLflow's tables; copying it saves a test the seconds that making them takes."""
    from pipeline.tracking.sqlite import prepare_store

    return made_once("store", lambda folder: prepare_store(f"sqlite:///{folder}/mlflow.db")) / "mlflow.db"


@pytest.fixture
def sqlite_store(empty_store: Path, tmp_path: Path) -> str:
    """Tracking URI of a store of this test's own."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str | None]:
    """The URI of a PostgreSQL database, or nothing where its programs or its driver are not installed."""
    with servers.postgres_server() as uri:
        yield uri


@pytest.fixture(scope="session")
def tracking_server(
    s3: str, postgres: str | None, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """URI of an `mlflow server`: on PostgreSQL if it is installed, else on SQLite; artifacts go to S3."""
    folder = tmp_path_factory.mktemp("server")
    backend = postgres or f"sqlite:///{shutil.copy(empty_store, folder / 'server.db')}"
    with servers.mlflow_server(backend, "s3://test/mlflow", folder) as uri:
        yield uri


@pytest.fixture(params=["sqlite", "server"])
def store(request: pytest.FixtureRequest) -> str:
    """Tracking URI of both kinds of store."""
    return request.getfixturevalue("sqlite_store" if request.param == "sqlite" else "tracking_server")


@pytest.fixture
def model_name(request: pytest.FixtureRequest) -> str:
    """A name in the registry of this test's own: the server serves the whole session."""
    return re.sub(r"\W+", "-", request.node.name).strip("-")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Folders of small blind x2 models; each number gives other weights."""
    import numpy as np
    import torch

    from kernels_bank import KernelCodec, sample_gaussian
    from pipeline.model import BlindUSRNet
    from pipeline.model.weights import save_model
    from pipeline.model_config import EstimatorConfig, KernelConfig, ModelConfig, RestorerConfig

    parent = tmp_path_factory.mktemp("models")
    codec = KernelCodec.fit(sample_gaussian(50, 11, rng=np.random.default_rng(0)), components=4)
    config = ModelConfig(
        restorer=RestorerConfig(unfoldings=2, widths=(4, 4, 4, 4), residual_blocks=1),
        kernel=KernelConfig(rounds=1, estimator=EstimatorConfig(channels=4)),
    )

    def make(number: int) -> Path:
        folder = parent / str(number)
        if not folder.exists():
            folder.mkdir()
            torch.manual_seed(number)
            save_model(BlindUSRNet(config, codec), folder, provenance={"bank": "b" * 64})
        return folder

    return make


@pytest.fixture
def add_version(
    model_name: str, model_folder: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Registers a version from a run of its own; fetched models are kept in this test's folder."""
    from pipeline.registry import versions
    from pipeline.tracking import runs

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def add(store: str, number: int = 0, metrics: dict[str, float] | None = None, folder: Path | None = None) -> int:
        run = runs.open_run("registry", "a", store, {"data": {"sigma": [0.0, 0.02]}}, {}, key=f"{model_name}{number}")
        runs.finish(run, "FINISHED")
        folder = folder or model_folder(number)
        return versions.register(run, folder, model_name, "candidate", metrics or {}, {"shards": "s" * 64})

    return add


@pytest.fixture
def local() -> Iterator[Local]:
    """A cluster of processes, not yet up; nothing of it outlives the test."""
    from tests.flow.launcher import Local

    folder = Path(tempfile.mkdtemp(prefix="bsr-", dir="/tmp"))  # sockets' paths must be short
    made = Local(folder)
    yield made
    made("down")
    assert not made.marked()
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_name(folder.name + "-failed.log").unlink(missing_ok=True)
