"""A bank of 20 million kernels opens at once: nothing is held for every kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kernels_bank import KernelBankSpec, cache
from kernels_bank.codec import KernelCodec
from kernels_bank.runtime import storage, uris
from kernels_bank.store import CODEC, CodecRecord, Manifest, ShardRecord, bank_digest, plan, write_manifest

SPEC = KernelBankSpec(gaussian=12_000_000, motion=8_000_000, components=24)
DRAW = """
import json, re, sys, time
from pathlib import Path
import numpy as np
from kernels_bank import KernelBank
started = time.process_time()
bank = KernelBank.open(sys.argv[1])
opened = time.process_time() - started
chosen = np.random.default_rng(0).integers(0, len(bank), 1000)
total = sum(float(bank.kernels[index].sum()) for index in chosen)
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps([len(bank), opened, time.process_time() - started - opened, peak, total]))
"""


def _write_bank(folder: Path, banks: Path) -> None:
    """A bank whose kernels are all zeros: a manifest, a codec, and an unpacked file that takes no room on the disk."""
    zeros = "0" * 64
    records = [ShardRecord(**shard.model_dump(), bytes=1, sha256=zeros, content=zeros) for shard in plan(SPEC)]
    digest, side = bank_digest(SPEC.size, records), SPEC.size**2
    codec = KernelCodec.from_moments(100, np.ones(side), np.eye(side) * 9, components=24, bank_digest=digest)
    codec.save(uris.join(folder, CODEC))
    record = CodecRecord(
        sha256=storage.sha256_of(folder / CODEC), digest=codec.digest, components=24, explained_variance=1, losses=[]
    )
    write_manifest(str(folder), Manifest(spec=SPEC, digest=digest, shards=records, codec=record, made_with={}))
    banks.mkdir(parents=True, mode=0o700)
    with (banks / f"{digest}.npy").open("wb") as stream:
        shape = (SPEC.count, SPEC.size, SPEC.size)
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
        stream.truncate(stream.tell() + 4 * SPEC.count * side)
    storage.write_json(banks / f"{digest}.verified", cache._identity(banks / f"{digest}.npy"))


@pytest.mark.skipif(cache.boot_id() is None, reason="the boot and the memory are read in /proc")
def test_twenty_million_kernels_open_and_are_drawn_in_little_time_and_memory(tmp_path: Path):
    _write_bank(tmp_path / "bank", tmp_path / "cache" / "banks")
    environment = os.environ | {"BLINDSR_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", DRAW, str(tmp_path / "bank")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    count, opened, drawn, peak, total = json.loads(done.stdout)
    print(f"opened in {opened:.2f} s of CPU, 1,000 kernels in {drawn * 1e3:.0f} ms, peak {peak:.0f} MB")
    assert (count, total) == (SPEC.count, 0)
    assert opened < 2
    assert drawn < 1
    assert peak < 200
