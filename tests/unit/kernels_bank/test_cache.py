"""The unpacked bank in the cache is not trusted: after any change to it, a bank's kernels are those of its shards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kernels_bank import KernelBank, KernelCodec, cache, sample_gaussian
from kernels_bank.runtime import process, storage
from kernels_bank.runtime.errors import ArtefactError
from kernels_bank.spec import KernelBankSpec
from kernels_bank.store import CODEC, MANIFEST, CodecRecord, Manifest, bank_digest, law_digest, plan, write_shard


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bank")
    spec = KernelBankSpec(gaussian=300, motion=0, size=11)
    kernels = sample_gaussian(300, 11, rng=np.random.default_rng(0))
    (shard,) = plan(spec)
    record = write_shard(str(folder), shard, law_digest(spec, shard.family), kernels, {})
    digest = bank_digest(11, [record])
    codec = KernelCodec.fit(kernels, components=4, bank_digest=digest)
    codec.save(folder / CODEC)
    about = CodecRecord(
        sha256=storage.sha256_of(folder / CODEC), digest=codec.digest, components=4, explained_variance=0.9, losses=[]
    )
    manifest = Manifest(spec=spec, digest=digest, shards=[record], codec=about, made_with={})
    storage.write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    return folder


@pytest.fixture
def unpacked(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BLINDSR_CACHE", str(tmp_path / "cache"))
    KernelBank.open(made)
    (path,) = (tmp_path / "cache" / "banks").glob("*.npy")
    return path


def truth() -> np.ndarray:
    return sample_gaussian(300, 11, rng=np.random.default_rng(0))


def zeros(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(5000)
        stream.write(bytes(2000))


def zeros_with_old_times(path: Path) -> None:
    """The change time cannot be set back."""
    about = path.stat()
    zeros(path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def zeros_under_a_copied_mark(path: Path) -> None:
    mark = path.with_suffix(".verified").read_bytes()
    zeros(path)
    path.with_suffix(".verified").write_bytes(mark)


def other_header(path: Path) -> None:
    np.save(path, truth().astype(np.float64))


def another_order(path: Path) -> None:
    np.save(path, np.asfortranarray(truth()))


def pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4)


def empty(path: Path) -> None:
    os.truncate(path, 0)


DAMAGE = [
    *(zeros, zeros_with_old_times, zeros_under_a_copied_mark, other_header, another_order, pickled, cut, empty),
    Path.unlink,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_unpacked_again(
    made: Path, unpacked: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
):
    damage(unpacked)
    np.testing.assert_array_equal(KernelBank.open(made).kernels, truth())
    assert ("unpacked again" in capsys.readouterr().err) == (damage is not Path.unlink)
    np.testing.assert_array_equal(np.load(unpacked), truth())


def test_it_is_compared_once_a_boot(made: Path, unpacked: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    compared = []
    monkeypatch.setattr(cache, "content_digest", lambda k: compared.append(1) or storage.digest_of("no kernels"))
    KernelBank.open(made)
    assert not compared
    (tmp_path / "boot").write_text("another boot\n")
    monkeypatch.setattr(process, "_BOOT", tmp_path / "boot")
    with pytest.raises(ArtefactError, match="does not keep what is written"):
        KernelBank.open(made)
    assert compared


def test_a_mark_in_a_folder_that_others_can_write_to_does_not_count(
    made: Path, unpacked: Path, monkeypatch: pytest.MonkeyPatch
):
    unpacked.parent.chmod(0o777)
    compared, digest = [], cache.content_digest
    monkeypatch.setattr(cache, "content_digest", lambda k: compared.append(1) or digest(k))
    KernelBank.open(made)
    KernelBank.open(made)
    assert len(compared) == 2


def test_what_a_killed_process_left_goes_with_the_next_unpacking(made: Path, unpacked: Path):
    left = unpacked.with_name(f".{unpacked.name}.0123456789ab")
    left.write_bytes(b"half")
    unpacked.unlink()
    KernelBank.open(made)
    assert not left.exists()


@pytest.mark.parametrize("name", [CODEC, "kernels-00000.parquet"])
def test_a_file_of_the_bank_that_changed_is_refused(
    made: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BLINDSR_CACHE", str(tmp_path / "cache"))
    bank = shutil.copytree(made, tmp_path / "bank")
    data = bytearray((bank / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bank / name).write_bytes(data)
    with pytest.raises(ArtefactError, match=name):
        KernelBank.open(bank)
