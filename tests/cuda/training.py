"""A training step on the device: values, precisions, compiled, activations, memory, waits, determinism, failure."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.evaluation.memory import PeakMemory
from pipeline.model.compiling import compiler_works
from pipeline.model_config import KernelConfig
from pipeline.training.learner import Learner
from pipeline.training.ledger import Ledger, NonFiniteLossError
from pipeline.training.planning.cost import training_cost
from pipeline.training.step import move_if, take_step, train_step
from tests.cuda.place import (
    FULL,
    TINY,
    Facts,
    Place,
    batch,
    codec,
    float32,
    has_tf32,
    learner,
    run_config,
    skip,
    within,
)

CPU = Place(torch.device("cpu"))


def _gradients(place: Place, *, patch: int = 48, model: object = TINY, **train: object) -> tuple[float, list[Tensor]]:
    """Loss of one step, and the gradients before they are clipped: on the CPU."""
    config = run_config(model, patch, clip_norm=1e9, **train)  # type: ignore[arg-type]
    trained = learner(place, config)
    metrics = train_step(trained, batch(place, 4, patch, 2), config.train, 1)
    return metrics["loss"], [p.grad.cpu() for p in trained.network.parameters() if p.grad is not None]


def _relative(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Norm of the difference of all gradients over the norm of all."""
    apart = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(ours, theirs, strict=True))
    return (apart / sum(float(b.double().square().sum()) for b in theirs)) ** 0.5


def check_step(place: Place) -> Facts:
    """Loss and gradients equal the CPU's within 1e-4 and 1e-2 (relative): whole alternation, odd patch."""
    with float32(tf32=False):
        ours, theirs = (_gradients(where, patch=52) for where in (place, CPU))
    loss, gradient = abs(ours[0] / theirs[0] - 1), _relative(ours[1], theirs[1])
    within("loss", loss, 1e-4)
    within("gradients", gradient, 1e-2)
    return {"loss": loss, "gradients": gradient}


def _losses(place: Place, steps: int, **train: object) -> list[float]:
    config = run_config(TINY, 48, learning_rate=2e-3, kernel_learning_rate=2e-3, **train)
    trained, samples = learner(place, config), batch(place, place.pick(8, 4), 48, 2)
    return [train_step(trained, samples, config.train, step)["loss"] for step in range(steps)]


def check_precisions(place: Place) -> Facts:
    """Twenty steps in TF32 and in bf16 learn: the loss falls, and ends within 15% of float32's (8% on a CPU)."""
    with float32(tf32=False):
        exact = _losses(place, 20)
    facts: Facts = {"float32": exact[-1]}
    ways = {"bf16": {"precision": "bf16"}} | ({"TF32": {}} if has_tf32(place) else {})
    for name, change in ways.items():
        with float32(tf32=has_tf32(place)):
            found = _losses(place, 20, **change)
        assert found[-1] < 0.9 * found[0], f"{name}: the loss went from {found[0]:.4f} to {found[-1]:.4f}"
        within(f"{name} against float32", abs(found[-1] / exact[-1] - 1), 0.15)
        facts[name] = found[-1]
    return facts


def check_compiled(place: Place) -> Facts:
    """A compiled prior gives the same loss and gradients within 1e-3 and 2e-2 (relative)."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if not compiler_works(place.device.type):
            skip(str(said[-1].message) if said else "torch.compile does not work here")
    with float32(tf32=False):
        plain = _gradients(place)
        compiled = _gradients(place, model=TINY.with_restorer(compile_prior=True))
    loss, gradient = abs(compiled[0] / plain[0] - 1), _relative(compiled[1], plain[1])
    within("loss", loss, 1e-3)
    within("gradients", gradient, 2e-2)
    return {"loss": loss, "gradients": gradient}


def check_activations_computed_again(place: Place) -> Facts:
    """With activation checkpointing gradients are the same within 1e-3 (relative), and a card's peak is lower."""
    again = TINY.with_restorer(checkpoint_activations=True)
    with float32(tf32=False):
        with PeakMemory(place.device) as kept_memory:
            kept = _gradients(place, patch=96)
        with PeakMemory(place.device) as again_memory:
            computed = _gradients(place, patch=96, model=again)
    gradient = _relative(computed[1], kept[1])
    within("gradients", gradient, 1e-3)
    if not place.is_card:
        return {"gradients": gradient}
    assert kept_memory.mib is not None
    assert again_memory.mib is not None
    assert again_memory.mib < kept_memory.mib, f"{again_memory.mib:.0f} MiB against {kept_memory.mib:.0f}"
    return {"gradients": gradient, "MiB kept": kept_memory.mib, "MiB computed again": again_memory.mib}


def check_peak_memory(place: Place) -> Facts:
    """The peak of a step at full width is within 20% of what jobs/plan.py says: kept, and computed again."""
    if not place.is_card:
        skip("needs a card; the CPU's peak is compared in tests/unit/training/planning/test_cost.py")
    facts: Facts = {}
    for again in (False, True):
        model = FULL.with_restorer(checkpoint_activations=again)
        config = run_config(model, 96)
        plan = training_cost(model, config.train, codec(), 96, 2).peak_bytes(8) / 2**30
        trained, samples = learner(place, config), batch(place, 8, 96, 2)
        train_step(trained, samples, config.train, 1)  # makes Adam's moments; cuDNN chooses its algorithms
        torch.cuda.reset_peak_memory_stats(place.device)
        train_step(trained, samples, config.train, 2)
        peak = torch.cuda.max_memory_allocated(place.device) / 2**30
        del trained
        torch.cuda.empty_cache()
        name = "computed again" if again else "kept"
        facts |= {f"GiB {name}": peak, f"GiB planned, {name}": plan}
        within(f"{name}: share beyond the plan of {plan:.2f} GiB", abs(peak / plan - 1), 0.2)
    return facts


def check_accumulation(place: Place) -> Facts:
    """A batch taken in parts (also uneven ones) has the whole batch's gradients within 1e-3 (relative)."""
    with float32(tf32=False):
        whole = _gradients(place)
        worst = max(_relative(_gradients(place, micro_batch=size)[1], whole[1]) for size in (1, 3))
    within("gradients", worst, 1e-3)
    return {"gradients": worst}


def check_waits(place: Place) -> Facts:
    """A step does not wait for the card at all, and the log's look at its metrics waits once."""
    if not place.is_card:
        skip("needs a card; a pretended one is asked in tests/unit/model/test_devices.py")
    config = run_config(TINY, 48, precision="bf16")
    trained, samples, ledger = learner(place, config), batch(place, 4, 48, 2), Ledger()
    ledger.add(1, take_step(trained, samples, config.train, 1), {}, samples.keys)  # what is made once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (2, 3, 4):
            ledger.add(step, take_step(trained, samples, config.train, step), {}, samples.keys)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"steps without a wait": 3, "loss": ledger.mean()["loss"]}


def _state(trained: Learner) -> list[Tensor]:
    moments = [value for state in trained.optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in [*trained.network.parameters(), *moments]]


def check_non_finite(place: Place) -> Facts:
    """From a step with NaN on weights and moments hold still, also at later steps; the look names step and samples."""
    config = run_config(TINY, 48)
    trained, good, ledger = learner(place, config), batch(place, 4, 48, 2), Ledger()
    bad = replace(good, hr=good.hr * float("nan"))
    ledger.add(1, take_step(trained, good, config.train, 1), {}, good.keys)
    before = _state(trained)
    try:
        for step, samples in ((2, bad), (3, good), (4, good)):
            ledger.add(step, take_step(trained, samples, config.train, step), {}, samples.keys)
        ledger.mean()
    except NonFiniteLossError as error:
        assert str(error).startswith("step 2: loss nan"), error
        assert "on samples sample0, sample1" in str(error)
    else:
        raise AssertionError("nobody was told")
    assert all(torch.equal(a, b) for a, b in zip(_state(trained), before, strict=True)), "something moved"
    # What a card does without being waited for, on this device's fused optimizer.
    for finite in (0.0, 1.0):
        move_if(torch.tensor(finite, device=place.device), trained.optimizer, wait=False)
    assert all(torch.equal(a, b) for a, b in zip(_state(trained), before, strict=True)), "the brake let go"
    return {"steps that held still": 3}


def check_deterministic(place: Place) -> Facts:
    """`train.deterministic` refuses no operation of a step, and two trainings of three steps have the same bits."""
    ended = []
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            config = run_config(TINY.model_copy(update={"kernel": KernelConfig(rounds=1, initial="spectral")}), 52)
            trained, samples = learner(place, config), batch(place, 4, 52, 2)
            for step in range(3):
                train_step(trained, samples, config.train, step)
            ended.append(_state(trained))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*ended, strict=True)), "the bits differ"
    return {"steps": 3}


def check_seeds(place: Place) -> Facts:
    """A network drawn from a seed is the same wherever it then trains, whatever the card's own generator did before."""
    if place.is_card:
        torch.rand(1000, device=place.device)
    ours, theirs = (learner(where, run_config(TINY, 48)) for where in (place, CPU))
    pairs = zip(ours.network.parameters(), theirs.network.parameters(), strict=True)
    assert all(torch.equal(a.detach().cpu(), b.detach()) for a, b in pairs)
    return {}
