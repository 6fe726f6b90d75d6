"""The whole pipeline on bundled photographs: bank, shards, training, evaluation, look-up, restoration."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from kernels_bank import KernelBankSpec, benchmark_kernels
from kernels_bank.runtime.cluster import connect
from kernels_bank.runtime.output import check_writable, write_once
from pipeline.config import RunConfig
from pipeline.data.manifest import ShardSettings
from pipeline.data.photographs import check_photographs, copy_photographs

BANK = KernelBankSpec(gaussian=1000, motion=1000, size=25, sigma=(0.4, 4.5), sigma_law="log")
SHARDS = ShardSettings(tile=240, shard_mib=1)
_SHOWN = "chelsea.png"
_SHOWN_KERNEL = 7  # index in the benchmark: a slanted anisotropic Gaussian


@dataclass(frozen=True)
class Result:
    """Hold the locations of all results."""

    home: Path
    tracking_uri: str
    model: str  # models:/name@alias
    version: int | None
    headline: dict[str, float]
    restored: Path  # folder of the restored picture
    lr: Path  # the picture that was restored


def quickstart(config: RunConfig, protocol: Path) -> Result:
    """Run every step. Steps with existing results that match are skipped, which is printed.

    Args:
        config: settings of the training. Bank and shards are built at the places that it names.
        protocol: YAML file of the evaluation protocol.
    """
    from kernels_bank.generate import build_bank, present
    from pipeline.data.shards import make_shards
    from pipeline.evaluation.evaluate import run_evaluation
    from pipeline.evaluation.settings import EvaluationSettings
    from pipeline.inference.batch import checked, restore_files
    from pipeline.inference.settings import RestoreSettings
    from pipeline.tracking import runs
    from pipeline.training.fit import cpus_needed, fit

    home = Path(config.output).absolute() / config.name
    check_writable(config.output)
    # Checked first, so that obstacles are reported before minutes of work.
    train, held_out = copy_photographs(home / "photographs")
    lr = _degraded(held_out / _SHOWN, home)
    uri = runs.use_store(config.output)
    threading.Thread(target=runs.prepare_store, args=(uri,), daemon=True).start()
    connect(min_cpus=cpus_needed(config))

    with step("1/6 kernel bank"):
        if present(BANK, config.data.bank):
            print(f"  {config.data.bank}: the same bank is there; reused")
        bank = build_bank(BANK, config.data.bank)
        print(f"  {BANK.count} kernels, code of {bank.codec.components} components; see {config.data.bank}/preview.png")
    with step("2/6 shards"):
        shards, reused = make_shards(str(train), config.data.shard_sets[0].uri, SHARDS)
        state = "the same shards are there; reused" if reused else "written"
        print(f"  {shards.images} photographs, {shards.samples} tiles in {len(shards.train)} shards: {state}")
    with step(f"3/6 training, {config.train.steps} steps from {config.train.start_from}"):
        fitted = fit(config)
        print(f"  {config.name} {'was finished before; reused' if fitted.reused else 'finished'}: {fitted.model}")
    name = config.tracking.model_name
    model = f"models:/{name}@{config.tracking.alias}"
    print(f"4/6 registered: {name} version {fitted.version}, alias {config.tracking.alias}", flush=True)
    with step("5/6 evaluation on two held-out photographs"):
        settings = EvaluationSettings(model=model, images=str(held_out), protocol=str(protocol))
        headline = run_evaluation(settings, home / f"evaluation-v{fitted.version}")
    with step("6/6 look-up by alias and restoration"):
        restored = home / f"restored-v{fitted.version}"
        wanted = RestoreSettings(model=model, input=str(lr), output=str(restored), scale=2, overwrite=True)
        checked(restore_files(wanted))
    return Result(home, uri, model, fitted.version, headline, restored, lr)


def planned(config: RunConfig, protocol: Path) -> str:
    """Describe what `quickstart` would do. All requirements are checked, and nothing is written.

    Raises:
        BadRequestError: a package with photographs is missing, the protocol is wrong, or the place is not writable.
    """
    from kernels_bank.runtime import storage, uris
    from pipeline.evaluation.protocol import load_protocol

    check_writable(config.output)
    photographs, name = check_photographs(), load_protocol(str(protocol)).name

    def state(uri: str, file: str) -> str:
        return "there, reused if it matches" if storage.exists(uris.join(uri, file)) else "to be made"

    lines = [
        f"everything would lie in {config.output}",
        f"photographs    {photographs}, bundled",
        f"kernel bank    {BANK.count} kernels: {state(config.data.bank, 'manifest.json')}",
        f"shards         {state(config.data.shard_sets[0].uri, 'manifest.json')}",
    ]
    home = uris.join(config.output, config.name)
    lines += [
        f"training       {config.train.steps} steps from {config.train.start_from}: {state(home, 'run.json')}",
        f"registry       {config.tracking.model_name}, alias {config.tracking.alias}",
        f"evaluation     protocol '{name}', two held-out photographs",
    ]
    return "\n  ".join(lines)


class step:  # noqa: N801 - reads as a statement
    """Print a step's name when it starts and its duration when it ends: `with step("1/6 kernel bank"):`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        print(f"{self._name} ...", flush=True)
        self._started = time.monotonic()

    def __exit__(self, *error: object) -> None:
        print(f"  {time.monotonic() - self._started:.1f} s", flush=True)


def _degraded(photograph: Path, home: Path) -> Path:
    """Degrade the held-out photograph as a bad camera would: blur it, halve its size, round it to 8 bit."""
    from pipeline.evaluation.cases import crop_hr, make_lr
    from pipeline.evaluation.protocol import PROTOCOLS
    from pipeline.images.decode import decode_image
    from pipeline.images.encode import encode_png

    protocol = PROTOCOLS["usrnet-table1"]
    hr = crop_hr(decode_image(photograph.read_bytes()), 2, protocol)
    kernel = benchmark_kernels()[_SHOWN_KERNEL - 1]
    lr = make_lr(hr, kernel, 2, 0.0, protocol)
    wrapped = len(kernel) // 4 + 1  # a camera's picture is not periodic: cut off the wrapped edges
    lr = lr[wrapped:-wrapped, wrapped:-wrapped]
    path = home / "lr" / photograph.name
    write_once({path: encode_png((lr * 255).round().astype("uint8"))})
    return path
