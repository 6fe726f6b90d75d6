"""Speed on the device: training steps of the tiny and the full network against the published form, restorations.

Rows of a table, not laws: nothing fails by being slow. `share` is the share of the card's peak for the precision (model
FLOPs utilisation): operations of the network's own, what checkpointing or the published form adds not counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.inference import Restorer
from pipeline.model import USRNet
from pipeline.model.compiling import compiler_works
from pipeline.model_config import ModelConfig, RestorerConfig
from pipeline.training.planning.cost import training_cost
from tests.cuda.place import FULL, TINY, Facts, Place, codec, float32, has_tf32, kernels, pictures, run_config, skip
from tests.published import PublishedUSRNet

SCALE = 2
TINY_AS_SHIPPED = ModelConfig(restorer=RestorerConfig(x0="nearest", global_skip=False))
# Peak of data sheets, 1e12 operations a second, dense: bf16, TF32, float32 on the plain units.
PEAKS = {
    "H200": (989, 494, 67),
    "H100 PCIe": (756, 378, 51),
    "H100": (989, 494, 67),
    "A100": (312, 156, 19.5),
    "L40S": (362, 183, 92),
    "A10G": (70, 35, 35),
    "L4": (121, 60, 30),
}
# Name, published form, TF32, bf16, compiled, channels last, CUDA graph.
_WAYS: dict[str, tuple[bool, bool, bool, bool, bool, bool]] = {
    "published form, float32": (True, False, False, False, False, False),
    "published form, TF32": (True, True, False, False, False, False),
    "ours, float32": (False, False, False, False, True, False),
    "ours, TF32": (False, True, False, False, True, False),
    "ours, bf16, contiguous": (False, True, True, False, False, False),
    "ours, bf16": (False, True, True, False, True, False),
    "ours, bf16, compiled": (False, True, True, True, True, False),
    "ours, bf16, CUDA graph": (False, True, True, False, True, True),
}


def peak_flops(name: str, *, bf16: bool, tf32: bool) -> float | None:
    """Return the peak of a card of this name, operations a second; None for one that is not in the list."""
    found = next((peaks for card, peaks in PEAKS.items() if card in name), None)
    return None if found is None else 1e12 * found[0 if bf16 else 1 if tf32 else 2]


def _patch(place: Place) -> int:
    return place.pick(96, 48)


def _training_step(network: nn.Module, place: Place, count: int, *, bf16: bool, fused: bool) -> Callable[[], None]:
    side = _patch(place)
    hr, kernel = pictures(count, side, side).to(place.device), kernels(count, 25).to(place.device)
    lr, sigma = hr[..., ::SCALE, ::SCALE].contiguous(), torch.full((count,), 0.01, device=place.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=fused, capturable=place.is_card)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(place.device.type, torch.bfloat16, enabled=bf16):
            loss = F.l1_loss(network(lr, kernel, SCALE, sigma), hr)
        loss.backward()
        optimizer.step()

    return step


def _captured(step: Callable[[], None], place: Place) -> Callable[[], None]:
    """A step as one CUDA graph: its thousands of kernels start without Python between them."""
    side = torch.cuda.Stream(place.device)
    side.wait_stream(torch.cuda.current_stream(place.device))
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream(place.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def seconds_of(work: Callable[[], object], place: Place, budget_s: float) -> float:
    """Return the median seconds of a call, after two that warm up, for at most about `budget_s`; once on a CPU."""
    for _ in range(place.pick(2, 1)):
        work()
    place.wait()
    taken: list[float] = []
    ends = time.perf_counter() + budget_s
    while len(taken) < place.pick(3, 1) or (time.perf_counter() < ends and len(taken) < 100):
        before = time.perf_counter()
        work()
        place.wait()
        taken.append(time.perf_counter() - before)
    return statistics.median(taken)


def _network(config: ModelConfig, *, published: bool, compiled: bool, channels_last: bool, place: Place) -> nn.Module:
    torch.manual_seed(0)
    restorer = config.restorer.changed(compile_prior=compiled)
    made = PublishedUSRNet(restorer) if published else USRNet(restorer)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return made.to(place.device, memory_format=layout).train()  # type: ignore[call-overload]


def _table(config: ModelConfig, place: Place, count: int, budget_s: float, *, name: str) -> list[Facts]:
    side = _patch(place)
    cost = training_cost(config, run_config(config, side, learn="restorer").train, codec(), side, SCALE)
    flops = count * (cost.forward_flops + cost.backward_flops)
    card = torch.cuda.get_device_name(place.device) if place.is_card else "CPU"
    rows: list[Facts] = []
    for way, (published, tf32, bf16, compiled, channels_last, graph) in _WAYS.items():
        row: Facts = {"network": name, "way": way, "batch": count, "patch": side}
        rows.append(row)
        if (graph and not place.is_card) or (tf32 and not bf16 and not has_tf32(place)):
            row["not run"] = "needs a card"
            continue
        if compiled and not compiler_works(place.device.type):
            row["not run"] = "no compiler"
            continue
        try:
            with float32(tf32=tf32):
                net = _network(config, published=published, compiled=compiled, channels_last=channels_last, place=place)
                step = _training_step(net, place, count, bf16=bf16, fused=not published)
                seconds = seconds_of(_captured(step, place) if graph else step, place, budget_s)
        except RuntimeError as error:  # a capture that this PyTorch refuses is a row without a number
            row["not run"] = str(error).splitlines()[0][:100]
            continue
        row |= {"steps/s": 1 / seconds, "samples/s": count / seconds, "TFLOP/s": flops / seconds / 1e12}
        if peak := peak_flops(card, bf16=bf16, tf32=tf32):
            row["share of peak"] = flops / seconds / peak
        reference = next((r["steps/s"] for r in rows if r["way"] == _WAYS_FIRST and "steps/s" in r), None)
        if reference is not None:
            row["against published"] = float(row["steps/s"]) / float(reference)
    return rows


_WAYS_FIRST = next(iter(_WAYS))


def check_training_tiny(place: Place) -> dict[str, list[Facts]]:
    """Steps a second of the tiny restorer, 96 x 96 at x2 (48 x 48 on a CPU), each way against the published form."""
    config = TINY_AS_SHIPPED if place.is_card else TINY.with_restorer(x0="nearest", global_skip=False)
    return {"rows": _table(config, place, place.pick(32, 2), place.pick(2, 0), name="tiny")}


def check_training_full(place: Place) -> dict[str, list[Facts]]:
    """Steps a second of the restorer of full width, 96 x 96 at x2, each way against the published form."""
    if not place.is_card:
        skip("needs a card; make bench has it for the CPU")
    config = FULL.with_restorer(x0="nearest", global_skip=False)
    return {"rows": _table(config, place, 12, 3, name="full")}


def check_restorations(place: Place) -> dict[str, list[Facts]]:
    """Restorations a second of a photograph of 1000 x 750 at x2 by the shipped model, with its kernel and blind."""
    restorer = Restorer.load("shipped:blind-sr-x2", device=place.device)
    height, width = place.pick(750, 32), place.pick(1000, 40)
    image = (255 * pictures(1, height, width)[0].permute(1, 2, 0).numpy()).astype("uint8")
    kernel, rows = kernels(1, 21)[0].numpy(), []
    for way, given in (("kernel given", kernel), ("blind", None)):
        for tf32 in (False, True) if has_tf32(place) else (False,):
            with float32(tf32=tf32):
                taken = seconds_of(
                    lambda given=given: restorer.restore(image, 2, 0.01, given, max_memory=32 << 30),
                    place,
                    place.pick(4, 0),
                )
            precision = "TF32" if tf32 else "float32"
            rows.append(
                {"photograph": f"{width} x {height}", "way": f"{way}, {precision}", "restorations/s": 1 / taken}
            )
    return {"rows": rows}
