"""Data-parallel training: processes of their own, nccl on cards, gloo on the CPU. Two where there are two cards."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from pipeline.data.batch import Batch
from pipeline.training.ledger import Ledger, NonFiniteLossError
from pipeline.training.step import agree, take_step, train_step
from tests.cuda.place import TINY, Facts, Place, batch, float32, learner, run_config, within

_COUNT, _PATCH = 4, 48
_CONFIG = run_config(TINY, _PATCH, clip_norm=1e9)


def _share(samples: Batch, rank: int, ranks: int) -> Batch:
    part = slice(rank * _COUNT // ranks, (rank + 1) * _COUNT // ranks)
    tensors = {name: getattr(samples, name)[part] for name in ("lr", "hr", "kernel", "sigma")}
    return replace(samples, **tensors, keys=samples.keys[part])


def _rank(rank: int, ranks: int, device_type: str, folder: str) -> None:
    """What each process does; rank 0 saves what came out."""
    torch.set_num_threads(1)
    place = Place(torch.device(device_type, rank) if device_type == "cuda" else torch.device("cpu"))
    if place.is_card:
        torch.cuda.set_device(place.device)
    backend = "nccl" if place.is_card else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    ids = [rank] if place.is_card else None
    trained = learner(place, _CONFIG, lambda objective: DistributedDataParallel(objective, device_ids=ids))
    samples = _share(batch(place, _COUNT, _PATCH, 2), rank, ranks)
    with float32(tf32=False):
        loss = train_step(trained, samples, _CONFIG.train, 1)["loss"]
    gradients = [p.grad.cpu() for p in trained.network.parameters()]
    said = agree([rank == ranks - 1, False], place.device)
    # One rank meets NaN: all of them must stop, and name that one's samples.
    ledger, named = Ledger(), ""
    spoilt = replace(samples, hr=samples.hr * float("nan")) if rank == ranks - 1 else samples
    try:
        ledger.add(2, take_step(trained, spoilt, _CONFIG.train, 2), {}, spoilt.keys)
        ledger.mean()
    except NonFiniteLossError as error:
        named = str(error)
    result = {"loss": loss, "gradients": gradients, "said": said, "named": named}
    torch.save(result, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def check_data_parallel(place: Place) -> Facts:
    """Ranks together have the gradients of one process on the whole batch within 1e-3 (relative), and stop together."""
    ranks = min(2, torch.cuda.device_count()) if place.is_card else 2
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, args=(ranks, place.device.type, folder), nprocs=ranks)
        found = [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]
    with float32(tf32=False):
        alone = learner(place, _CONFIG)
        train_step(alone, batch(place, _COUNT, _PATCH, 2), _CONFIG.train, 1)
    expected = torch.cat([p.grad.cpu().flatten() for p in alone.network.parameters()])
    worst = 0.0
    for one in found:
        gradient = torch.cat([g.flatten() for g in one["gradients"]])
        worst = max(worst, float((gradient - expected).norm() / expected.norm()))
        assert one["said"] == [True, False], "the ranks do not agree"
        assert one["named"].startswith("step 2: loss nan"), one["named"]
        assert f"in worker {ranks - 1} on samples" in one["named"]
    within("gradients", worst, 1e-3)
    return {"ranks": ranks, "backend": "nccl" if place.is_card else "gloo", "gradients": worst}
