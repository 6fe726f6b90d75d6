"""The bank through Ray, storage and the command line: built, found again, damaged, killed, shared, on S3."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.dataset as arrow_dataset
import pytest
import ray

from jobs.build_kernel_bank import BuildKernelBank, job
from kernels_bank import KernelBank, KernelBankSpec, build_bank
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from kernels_bank.runtime.output import note_files
from kernels_bank.runtime.sealed import SEAL
from kernels_bank.sampling import draw_range
from kernels_bank.store import verify
from pipeline.cli import run
from pipeline.tracking.runs import open_run
from pipeline.tracking.store import client

pytestmark = pytest.mark.flow

COMPOSITES = {"gaussian_reduced": 30, "motion_reduced": 30, "reduction": 3}
SPEC = KernelBankSpec(gaussian=1500, motion=1500, disk=60, delta=4, **COMPOSITES, size=15, seed=7, components=24)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BLINDSR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def built(cluster, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bank") / "bank"
    build_bank(SPEC, folder)
    return folder


@pytest.fixture
def copy(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bank"))


def command(*arguments: str) -> None:
    run(BuildKernelBank, job, arguments)


def test_the_bank_holds_what_the_spec_draws(built, cache):
    bank = KernelBank.open(built)
    assert len(bank) == SPEC.count
    assert bank.spec == SPEC
    for family, count in SPEC.counts.items():
        kernels, _ = draw_range(SPEC, family, 0, count)
        np.testing.assert_array_equal(bank.kernels[bank.family == family], kernels)
    assert bank.codec.components == 24
    assert bank.codec.bank_digest == bank.digest
    assert not bank.kernels.flags.writeable
    # The second opening reads no shard.
    for shard in built.glob("*.parquet"):
        shard.rename(shard.with_suffix(".away"))
    try:
        np.testing.assert_array_equal(KernelBank.open(f"file://{built}").kernels, bank.kernels)
    finally:
        for shard in built.glob("*.away"):
            shard.rename(shard.with_suffix(".parquet"))


def test_others_can_read_the_shards(built):
    table = arrow_dataset.dataset(str(built), format="parquet", exclude_invalid_files=True).to_table()
    frame = table.to_pandas()
    assert frame.groupby("family", observed=True).size().to_dict() == SPEC.counts
    assert frame.loc[frame.family == "gaussian", "sigma_along"].between(0.6, 5.0).all()
    assert frame.loc[frame.family == "motion", "sigma_along"].isna().all()
    np.testing.assert_allclose([np.sum(kernel) for kernel in frame.kernel], 1, atol=1e-5)


def test_the_same_spec_gives_the_same_files_anywhere(built, tmp_path):
    again = tmp_path / "elsewhere"
    build_bank(SPEC, again)
    for name in [*(file.name for file in built.glob("*.parquet")), "manifest.json", "codec.safetensors"]:
        assert (built / name).read_bytes() == (again / name).read_bytes(), name


def test_a_complete_bank_is_left_alone_and_another_refused(built):
    before = {file.name: file.stat().st_mtime_ns for file in built.iterdir()}
    build_bank(SPEC, built)
    assert {file.name: file.stat().st_mtime_ns for file in built.iterdir()} == before
    with pytest.raises(ArtefactError, match=r"differs in seed.*choose another --output"):
        build_bank(SPEC.model_copy(update={"seed": 8}), built)


def test_previews_are_pictures(built):
    from PIL import Image

    for name in ("preview.png", "distributions.png", "codec.png"):
        with Image.open(built / name) as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("L").getcolors(256)) > 50
        assert (built / name).stat().st_size < 500_000


def _flip(folder: Path) -> None:
    shard = folder / "kernels-00001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


def _truncate(folder: Path) -> None:
    shard = folder / "kernels-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])


def _edit(name: str, value: object) -> object:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest[SEAL]  # as earlier versions wrote it: the other checks stand alone
        (folder / "manifest.json").write_text(json.dumps(manifest | {name: value}))

    return edit


def _swap_codec(folder: Path) -> None:
    data = bytearray((folder / "codec.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "codec.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_flip, "kernels-00001.parquet: its SHA-256 is not the manifest's"),
        (_truncate, r"kernels-00001.parquet: \d+ bytes instead of \d+"),
        (lambda folder: (folder / "kernels-00001.parquet").unlink(), "kernels-00001.parquet: no such file"),
        (_edit("schema_version", 99), "schema version 99 is unknown"),
        (_edit("digest", "0" * 64), "digest does not match its list of shards"),
        (_edit("kind", "images"), "not the manifest of a kernel bank"),
        (_edit("shards", [{"name": "x"}]), r"damaged \(shards"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not a JSON file"),
        (lambda folder: (folder / "manifest.json").unlink(), "no kernel bank here"),
        (_swap_codec, "codec.safetensors"),
        (lambda folder: (folder / "codec.safetensors").unlink(), "codec.safetensors: no such file"),
    ],
    ids=["flipped", "truncated", "missing", "schema", "digest", "kind", "fields", "json", "none", "codec", "no-codec"],
)
def test_damage_has_its_own_error(copy, damage, message):
    assert len(list(verify(copy))) == 7
    damage(copy)
    with pytest.raises(ArtefactError, match=message):
        list(verify(copy))
    with pytest.raises(ArtefactError, match=message):
        KernelBank.open(copy)


def test_a_codec_of_another_bank_is_refused(copy, tmp_path):
    build_bank(SPEC.model_copy(update={"seed": 8, "motion": 0}), tmp_path / "other", previews=False)
    shutil.copy(tmp_path / "other" / "codec.safetensors", copy / "codec.safetensors")
    with pytest.raises(ArtefactError, match=r"codec\.safetensors: its SHA-256 is not the manifest's"):
        KernelBank.open(copy)


def test_damaged_and_stale_shards_are_replaced_by_the_next_build(copy, built):
    """As after a kill: no manifest, one shard whole, one cut short, one missing, one of a larger attempt."""
    (copy / "manifest.json").unlink()
    (copy / "building.json").write_text("{}")
    with pytest.raises(ArtefactError, match="not finished"):
        KernelBank.open(copy)
    _truncate(copy)
    (copy / "kernels-00002.parquet").unlink()
    for name in ("kernels-00009.parquet", "kernels-00010.parquet"):
        shutil.copy(copy / "kernels-00000.parquet", copy / name)
    note_files(str(copy), ["kernels-00009.parquet"])  # as the larger attempt did; the other file is somebody's own
    kept = (copy / "kernels-00000.parquet").stat().st_mtime_ns
    build_bank(SPEC, copy, previews=False)
    assert (copy / "kernels-00000.parquet").stat().st_mtime_ns == kept
    assert not (copy / "kernels-00009.parquet").exists()
    assert (copy / "kernels-00010.parquet").exists()
    assert not (copy / "building.json").exists()
    assert (copy / "manifest.json").read_bytes() == (built / "manifest.json").read_bytes()


def test_a_killed_build_is_finished_by_the_next_one(cluster, tmp_path, cache):
    output = tmp_path / "bank"
    arguments = ["--gaussian", "0", "--motion", "49152", "--components", "10", "--output", str(output)]
    log = tmp_path / "job.log"
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "jobs/build_kernel_bank.py", *arguments],
            cwd=Path(__file__).parents[2],
            start_new_session=True,
            stderr=said,
            stdout=said,
        )
    deadline = time.monotonic() + 120
    while not list(output.glob("*.parquet")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = {file.name: file.stat().st_mtime_ns for file in output.glob("*.parquet")}
    assert 0 < len(left) < 6, f"the kill came too late to test anything: {left}\n{log.read_text()}"
    assert not (output / "manifest.json").exists()
    spec = KernelBankSpec(gaussian=0, motion=49_152, components=10)
    finished = build_bank(spec, output, previews=False)
    assert {name: (output / name).stat().st_mtime_ns for name in left} == left
    assert {s.family for s in finished.shards} == {"motion"}
    bank = KernelBank.open(output)
    for start in (0, 8191, 30_000, 49_151):
        np.testing.assert_array_equal(bank.kernels[start], draw_range(spec, "motion", start, start + 1)[0][0])
    _workers_share(bank, output, cache)


def _anonymous_mib() -> float:
    """Memory that belongs to this process alone, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def _workers_share(bank: KernelBank, uri: Path, cache: Path) -> None:
    """87 MB of kernels, summed by two workers at a time: neither way of sharing copies them into a worker."""

    @ray.remote(num_cpus=1)
    class Reader:
        def __init__(self) -> None:
            os.environ["BLINDSR_CACHE"] = str(cache)

        def growth(self, found: KernelBank | str) -> tuple[float, float, bool]:
            before = _anonymous_mib()
            held = KernelBank.open(found) if isinstance(found, str) else found
            total = sum(float(held.kernels[i : i + 1024].sum()) for i in range(0, len(held), 1024))
            return total, _anonymous_mib() - before, held.kernels.flags.owndata

    size = bank.kernels.nbytes / 2**20
    assert size > 80
    readers = [Reader.remote() for _ in range(2)]
    for found in (ray.put(bank), str(uri)):
        for total, growth, own in ray.get([reader.growth.remote(found) for reader in readers]):
            assert total == pytest.approx(len(bank), rel=1e-4)
            assert not own
            assert growth < size / 4


def test_s3_bank_is_built_verified_and_cached(cluster, s3, cache, tmp_path):
    spec = SPEC.model_copy(update={"gaussian": 300, "motion": 0})
    manifest = build_bank(spec, "s3://test/bank", previews=False)
    assert build_bank(spec, "s3://test/bank") == manifest
    bank = KernelBank.open("s3://test/bank")
    assert bank.digest == manifest.digest == build_bank(spec, tmp_path / "local", previews=False).digest
    np.testing.assert_array_equal(bank.kernels[:300], draw_range(spec, "gaussian", 0, 300)[0])
    assert len(list(verify("s3://test/bank"))) == 6
    assert [file.name for file in cache.glob("banks/*.npy")] == [f"{bank.digest}.npy"]
    with pytest.raises(BadRequestError, match="there is no bucket 'nobody'"):
        build_bank(spec, "s3://nobody/bank")


def test_pictures_go_into_the_active_run(built, tmp_path, monkeypatch, capsys):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run_ref = open_run("banks", "bank", uri, params={}, tags={})
    monkeypatch.setenv("MLFLOW_RUN_ID", run_ref.run_id)
    arguments = [f"--{name}={count}" for name, count in SPEC.counts.items()] + ["--size=15", "--seed=7"]
    command("--output", str(built), *arguments, "--components=24")
    found = client(uri).list_artifacts(run_ref.run_id, "kernels")
    names = ["codec.png", "distributions.png", "manifest.json", "preview.png"]
    assert {file.path: file.file_size for file in found} == {
        f"kernels/{name}": (built / name).stat().st_size for name in names
    }
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(SystemExit) as exit_status:
        command("--output", str(tmp_path / "new"), *arguments)
    assert exit_status.value.code == 2
    assert "cannot find run 000" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_shard_that_cannot_be_written_is_one_line(cluster, tmp_path, capsys):
    """A folder in its place; the build ends with what went wrong, and the same command resumes from there."""
    obstacle = tmp_path / "bank" / "kernels-00000.parquet"
    obstacle.mkdir(parents=True)
    arguments = ["--output", str(tmp_path / "bank"), "--gaussian", "10", "--motion", "0"]
    with pytest.raises(SystemExit) as exit_status:
        command(*arguments)
    assert exit_status.value.code == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert "kernels-00000.parquet" in error[0]
    obstacle.rmdir()
    command(*arguments)
    assert len(KernelBank.open(tmp_path / "bank")) == 10


def test_command_line(built, tmp_path, capsys):
    command("--output", str(built), "--info")
    shown = capsys.readouterr().out
    assert "1,500 gaussian + 1,500 motion + 60 disk + 4 delta + 30 gaussian_reduced + " in shown
    assert KernelBank.open(built).digest in shown
    assert "24 components hold" in shown
    table = [line.split() for line in shown.splitlines() if line.startswith(("components", "motion, decoded"))]
    assert table[0][1:] == ["10", "24", "64", "110"]
    losses = [float(db) for db in table[1][3:]]
    assert losses == sorted(losses)
    assert 15 < losses[0] < losses[3] < 80
    command("--output", str(built), "--verify")
    assert "all 7 shards" in capsys.readouterr().out
    target = tmp_path / "new"
    command("--output", str(target), "--check", "--gaussian", "9000", "--motion", "0")
    assert "would build 9,000 gaussian kernels in 2 shards" in capsys.readouterr().out
    assert not target.exists()
    command("--output", str(target), "--preset", "dan1-x2", "--gaussian", "40")
    assert "40 gaussian kernels" in capsys.readouterr().out
    assert KernelBank.open(target).spec.sigma == (0.2, 2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "20"], "size 20 is even"),
        (["--gaussian", "-1"], "gaussian: Input should be greater than or equal to 0"),
        (["--gaussian", "0", "--motion", "0"], "ask for at least one kernel"),
        (["--preset", "dan9"], "preset dan9: unknown"),
        (["--info"], "no kernel bank here"),
        (["--verify"], "no kernel bank here"),
    ],
)
def test_bad_requests_are_one_line_and_exit_2(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_status:
        command("--output", str(tmp_path / "none"), *arguments)
    assert exit_status.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
