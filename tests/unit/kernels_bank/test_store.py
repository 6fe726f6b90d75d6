"""A shard's file: read in one thread, so that a process may end right after."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from kernels_bank import preview
from kernels_bank.generate import KIND, build_shard
from kernels_bank.runtime.errors import ArtefactError, JobFailedError
from kernels_bank.runtime.output import own_output
from kernels_bank.sampling import draw_range
from kernels_bank.spec import FAMILIES, KernelBankSpec
from kernels_bank.store import CODEC, PARAMETERS, Manifest, Shard, check_files, find_shard, plan, write_shard

READ = """
import json, os, sys
import numpy, pyarrow.parquet
from kernels_bank.store import ShardRecord, read_shard
from kernels_bank.runtime import storage
storage.read_bytes(sys.argv[1] + "/" + json.loads(sys.argv[2])["name"])
before = len(os.listdir("/proc/self/task"))
read_shard(sys.argv[1], ShardRecord.model_validate_json(sys.argv[2]))
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_reading_a_shard_leaves_no_thread_behind(tmp_path: Path) -> None:
    """A thread of Arrow's that drops the last reference to the file's bytes while Python ends aborts the process."""
    spec = KernelBankSpec(gaussian=20, motion=20, size=11)
    shard = Shard(name="kernels-00000.parquet", family="gaussian", start=0, rows=20)
    record = write_shard(str(tmp_path), shard, "law", *draw_range(spec, "gaussian", 0, 20))
    command = [sys.executable, "-c", READ, str(tmp_path), record.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def written(folder: Path) -> tuple[Shard, Manifest]:
    """Write a bank's one shard and something as its codec; return the shard and what the manifest says of it."""
    spec = KernelBankSpec(gaussian=20, motion=20, size=11)
    shard = Shard(name="kernels-00000.parquet", family="gaussian", start=0, rows=20)
    record = write_shard(str(folder), shard, "law", *draw_range(spec, "gaussian", 0, 20))
    (folder / CODEC).write_bytes(b"codec")
    return shard, Manifest.model_construct(shards=[record])


@pytest.mark.parametrize("name", ["kernels-00000.parquet", CODEC])
def test_a_finished_bank_that_lacks_a_file_is_not_finished(tmp_path: Path, name: str):
    _, manifest = written(tmp_path)
    check_files(str(tmp_path), manifest)
    (tmp_path / name).unlink()
    with pytest.raises(ArtefactError, match=rf"{name}: gone.*; delete the manifest and build again"):
        check_files(str(tmp_path), manifest)


def test_a_finished_bank_with_a_file_that_was_cut_is_not_finished(tmp_path: Path):
    shard, manifest = written(tmp_path)
    (tmp_path / shard.name).write_bytes((tmp_path / shard.name).read_bytes()[:-1])
    with pytest.raises(ArtefactError, match=rf"{shard.name}: gone, or not of its \d+ bytes"):
        check_files(str(tmp_path), manifest)


@pytest.mark.parametrize("kind", ["numbers", "lists", "texts", "odd"])
def test_a_file_with_other_columns_is_no_shard_that_was_left(tmp_path: Path, kind: str):
    shard, _ = written(tmp_path)
    about = parquet.read_schema(tmp_path / shard.name).metadata
    kernel = {
        "numbers": pa.array(range(20)),
        "lists": pa.array([[1.0] * 121] * 20),
        "texts": pa.FixedSizeListArray.from_arrays(pa.array(["a"] * 180), 9),
        "odd": pa.FixedSizeListArray.from_arrays(pa.array([1.0] * 140, pa.float32()), 7),
    }[kind]
    assert find_shard(str(tmp_path), shard, "law") is not None
    parquet.write_table(pa.table({"kernel": kernel}).replace_schema_metadata(about), tmp_path / shard.name)
    assert find_shard(str(tmp_path), shard, "law") is None


def test_what_has_no_column_is_refused_not_dropped(tmp_path: Path):
    kernels = np.full((2, 3, 3), 1 / 9, np.float32)
    shard = Shard(name="kernels-00000.parquet", family="gaussian", start=0, rows=2)
    with pytest.raises(ValueError, match="ring_outer: not in PARAMETERS"):
        write_shard(str(tmp_path), shard, "law", kernels, {"ring_outer": np.zeros(2)})


def test_pictures_have_a_word_for_every_parameter_and_a_colour_for_every_family():
    assert preview._DRAWN.keys() == set(PARAMETERS)
    assert preview._COLOURS.keys() == set(FAMILIES)


def test_a_bank_that_was_deleted_is_not_made_again_by_its_tasks(tmp_path: Path):
    spec = KernelBankSpec(gaussian=20, motion=0, size=9)
    (shard,) = plan(spec)
    row = {"spec": spec.model_dump_json(), "shard": shard.model_dump_json()}
    place = tmp_path / "gone"
    with own_output(str(place), KIND):
        assert len(build_shard(row, str(place))["total"]) == 81
    shutil.rmtree(place)  # a task runs in a process of its own, which only knows the place's name
    with pytest.raises(JobFailedError, match="was deleted while this command wrote to it"):
        build_shard(row, str(place))
    assert not place.exists()
