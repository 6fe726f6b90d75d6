"""Shards from a folder, a zip and S3: the same bytes; damaged inputs counted; a killed job finished."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from pipeline.data import manifest
from pipeline.data.images import encode_png
from pipeline.data.manifest import ShardSettings
from pipeline.data.shards import make_shards

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("cluster")]
SETTINGS = ShardSettings(tile=160, shard_mib=0.5)


def hashes(uri: str) -> dict[str, str]:
    return {name: storage.sha256_of(storage.join(uri, name)) for name, _ in storage.list_files(uri)}


def test_the_set_verifies_and_is_reused(shards: str, photographs: Path):
    seen = []
    found = manifest.verify(shards, lambda shard: seen.append(shard.name))
    assert len(seen) == len(found.train) >= 3
    again, reused = make_shards(str(photographs), shards, SETTINGS)
    assert reused
    assert again == found


def test_other_settings_on_the_same_place_are_refused(shards: str, photographs: Path):
    with pytest.raises(ArtefactError, match="other images or settings"):
        make_shards(str(photographs), shards, ShardSettings(tile=128, shard_mib=0.5))


def test_a_zip_and_s3_give_the_same_tars(shards: str, photographs: Path, tmp_path: Path, s3: str):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted(photographs.iterdir(), reverse=True):
            archive.write(file, file.name)
    make_shards(str(tmp_path / "photos.zip"), str(tmp_path / "from-zip"), SETTINGS)
    assert hashes(str(tmp_path / "from-zip")) == hashes(shards)
    for file in photographs.iterdir():
        storage.write_bytes(f"s3://test/photos/{file.name}", file.read_bytes())
    make_shards("s3://test/photos", "s3://test/shards", SETTINGS)
    assert hashes("s3://test/shards") == hashes(shards)


def test_ray_data_reads_the_tars_unchanged(shards: str):
    import ray.data

    rows = ray.data.read_webdataset(shards, file_extensions=["tar"], decoder=None).take_all()
    assert len(rows) == manifest.read_manifest(shards).samples


def test_bad_inputs_are_skipped_by_name_and_too_many_stop_the_job(photographs: Path, tmp_path: Path):
    source = tmp_path / "mixed"
    source.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        (source / f"good{i}.png").write_bytes(encode_png(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)))
    (source / "copy.png").write_bytes((source / "good3.png").read_bytes())
    (source / "text.png").write_text("not an image")
    (source / "cut.png").write_bytes((source / "good1.png").read_bytes()[:-900])
    with pytest.raises(BadRequestError, match=r"of 11 images cannot be used: .*text\.png \(not a readable image\)"):
        make_shards(str(source), str(tmp_path / "out"), SETTINGS, max_bad_fraction=0.05)
    found, _ = make_shards(str(source), str(tmp_path / "out"), SETTINGS, max_bad_fraction=0.3)
    assert {s.name for s in found.skipped} == {"copy.png", "text.png", "cut.png"} or {
        s.name for s in found.skipped
    } == {"good3.png", "text.png", "cut.png"}
    assert found.images == found.samples == 8


def test_a_flipped_byte_is_named(photographs: Path, tmp_path: Path):
    make_shards(str(photographs), str(tmp_path), SETTINGS)
    victim = tmp_path / "train-000001.tar"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(bytes(data))
    with pytest.raises(ArtefactError, match=r"train-000001\.tar: damaged"):
        manifest.verify(str(tmp_path), lambda shard: None)


def test_validation_split_is_by_image_and_does_not_depend_on_the_others(photographs: Path, tmp_path: Path):
    import json

    from pipeline.data.tiles import read_samples

    found, _ = make_shards(str(photographs), str(tmp_path), ShardSettings(tile=160, shard_mib=0.5, validation=0.5))
    sources = {
        split: {
            json.loads(s.json)["source"]
            for shard in shards
            for s in read_samples(manifest.read_shard(str(tmp_path), shard))
        }
        for split, shards in (("train", found.train), ("validation", found.validation))
    }
    assert sources["train"] | sources["validation"] == {p.name for p in photographs.iterdir()}
    assert not sources["train"] & sources["validation"]


def test_a_killed_job_is_finished_by_the_next_one(tmp_path: Path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    rng = np.random.default_rng(1)
    for i in range(8):
        (source / f"{i:02d}.png").write_bytes(encode_png(rng.integers(0, 256, (500, 500, 3), dtype=np.uint8)))
    settings = ShardSettings(tile=300, shard_mib=1)
    command = [sys.executable, "jobs/shard_images.py", "--source", str(source), "--output", str(out)]
    command += ["--tile", "300", "--shard-mib", "1"]
    repo = Path(__file__).parents[2]
    job = subprocess.Popen(
        command, cwd=repo, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("_notes/*.json")):
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    finished = {note.stem: (out / note.stem).stat().st_mtime_ns for note in out.glob("_notes/*.json")}
    assert not (out / "manifest.json").exists()
    make_shards(str(source), str(out), settings)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    make_shards(str(source), str(tmp_path / "undisturbed"), settings)
    assert hashes(str(out)) == hashes(str(tmp_path / "undisturbed"))
    assert hashlib.sha256((out / "manifest.json").read_bytes()).hexdigest() == hashes(str(out))["manifest.json"]
