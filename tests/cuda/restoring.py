"""Restoring photographs on the device: windows under a memory limit, memory that runs out, many sizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kernels_bank.runtime.errors import BadRequestError
from pipeline.evaluation.memory import PeakMemory
from pipeline.inference import Restorer, memory
from pipeline.model import restorer_of
from pipeline.model.usrnet import Tick
from tests.cuda.place import Facts, Place, float32, kernels, pictures, within

MODEL = "shipped:blind-sr-x2"


def _photograph(height: int, width: int) -> np.ndarray:
    return (255 * pictures(1, height, width)[0].permute(1, 2, 0).numpy()).round().astype(np.uint8)


def _grey_levels(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Largest and mean difference."""
    difference = np.abs(ours.astype(np.float64) - theirs)
    return float(difference.max()), float(difference.mean())


def check_photograph(place: Place) -> Facts:
    """A photograph restored blindly differs from the CPU's by 2 grey levels at most where the kernel is the same."""
    image = _photograph(place.pick(180, 32), place.pick(240, 40))
    with float32(tf32=False):
        ours = Restorer.load(MODEL, device=place.device).restore(image, 2)
        expected = Restorer.load(MODEL, device=torch.device("cpu")).restore(image, 2)
    apart = float(np.abs(ours.kernel - expected.kernel).sum())
    within("kernel", apart, 0.02)
    worst, mean = _grey_levels(ours.image, expected.image)
    within("largest difference in grey levels", worst, 2)
    return {"kernel, sum of differences": apart, "largest difference": worst, "mean difference": mean}


def _narrow() -> np.ndarray:
    """A kernel whose inverse reaches no further than windows of a small picture can have around them."""
    line = np.array([0.05, 0.25, 0.4, 0.25, 0.05], np.float32)
    return np.outer(line, line)


def _half(image: np.ndarray) -> int:
    """LR pixels of half the picture with its torus."""
    return (image.shape[0] + 96) * (image.shape[1] + 96) // 2


def _limit(restorer: Restorer, pixels: float) -> int:
    """Memory for windows of so many LR pixels."""
    each = memory.window_bytes(restorer_of(restorer.network).config) * 4
    return memory.in_use(restorer.device) + memory.RESERVE + int(pixels * each)


def check_windows_under_a_limit(place: Place) -> Facts:
    """Windows under a memory limit give what the whole gives within 2 grey levels, and stay below the limit."""
    restorer, kernel = Restorer.load(MODEL, device=place.device), _narrow()
    image = _photograph(place.pick(750, 280), place.pick(1000, 24))
    plenty = 64 << 30
    with float32(tf32=False):
        whole = restorer.restore(image, 2, 0.05, kernel, max_memory=plenty)
        limit = _limit(restorer, _half(image))
        if not place.is_card:
            limit += int(memory.image_bytes(2, 3, 1) * image.shape[0] * image.shape[1])
        with PeakMemory(place.device) as used:
            cut = restorer.restore(image, 2, 0.05, kernel, max_memory=limit)
    assert whole.windows == 1
    assert cut.windows > 1, "one window under the limit"
    worst, mean = _grey_levels(cut.image, whole.image)
    within("mean difference in grey levels", mean, 0.1)
    facts: Facts = {"windows": cut.windows, "largest difference": worst, "mean difference": mean}
    if place.is_card:
        allowed = (limit - memory.in_use(place.device)) / 2**20
        assert used.mib is not None
        within("MiB above the limit", used.mib - allowed, 0)
        facts |= {"peak, MiB": used.mib, "limit, MiB": allowed}
    return facts


class _Short(Restorer):
    """A restorer whose device has no memory for more than `largest` LR pixels at once."""

    largest = 0
    tried: list[int]

    def nonblind(
        self,
        lr: Tensor,
        kernel: Tensor,
        scale: int,
        sigma: float,
        x0: Tensor | None = None,
        tick: Tick | None = None,
    ) -> Tensor:
        pixels = lr.shape[-2] * lr.shape[-1]
        self.tried.append(pixels)
        if pixels > self.largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Pretended")
        return super().nonblind(lr, kernel, scale, sigma, x0, tick)


def _with_little_memory(place: Place, pixels: int, use: Callable[[Restorer], Facts]) -> Facts:
    """Call with a restorer that runs out of memory on windows of more LR pixels; on a card, really."""
    loaded = Restorer.load(MODEL, device=place.device)
    if not place.is_card:
        short = _Short(loaded.network, uri=MODEL, digest=loaded.digest, device=place.device)
        short.largest, short.tried = pixels, []
        return use(short)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(place.device).total_memory
    allowed = (
        torch.cuda.memory_reserved(place.device) + pixels * memory.window_bytes(restorer_of(loaded.network).config) * 4
    )
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), place.device)
    try:
        return use(loaded)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, place.device)
        torch.cuda.empty_cache()


def check_out_of_memory(place: Place) -> Facts:
    """Memory that runs out below the limit is answered by smaller windows, whose picture is that of the whole."""
    kernel, image = _narrow(), _photograph(place.pick(1200, 280), place.pick(1600, 24))
    with float32(tf32=False):
        whole = Restorer.load(MODEL, device=place.device).restore(image, 2, 0.05, kernel, max_memory=64 << 30)

        def restore(short: Restorer) -> Facts:
            found = short.restore(image, 2, 0.05, kernel, max_memory=64 << 30)
            assert found.windows > 1, "the memory did not run out: nothing was tried"
            worst, mean = _grey_levels(found.image, whole.image)
            within("mean difference in grey levels", mean, 0.1)
            return {"windows": found.windows, "largest difference": worst, "mean difference": mean}

        return _with_little_memory(place, _half(image), restore)


def check_no_memory_at_all(place: Place) -> Facts:
    """A card without room for any window is one line that says what to do, not a traceback of the allocator."""

    def restore(short: Restorer) -> Facts:
        try:
            short.restore(_photograph(200, 200), 2, 0.01, kernels(1, 21)[0].numpy(), max_memory=64 << 30)
        except BadRequestError as error:
            assert "too little memory is left" in str(error), error
            assert "\n" not in str(error)
            return {"said": str(error)[:120]}
        raise AssertionError("it was restored all the same")

    return _with_little_memory(place, 100, restore)


def check_many_sizes(place: Place) -> Facts:
    """Photographs of many sizes leave a bounded number of FFT plans behind, and no memory."""
    restorer, kernel = Restorer.load(MODEL, device=place.device), kernels(1, 21)[0].numpy()
    count = place.pick(40, 2)
    free = []
    for number in range(count):
        restorer.restore(_photograph(64 + 8 * number, 72 + 16 * (number % 7)), 2, 0.01, kernel)
        memory.give_back(place.device)
        if place.is_card:
            free.append(torch.cuda.mem_get_info(place.device)[0] / 2**20)
    if not place.is_card:
        return {"sizes": count}
    plans = torch.backends.cuda.cufft_plan_cache[torch.cuda.current_device()]
    assert plans.size <= plans.max_size <= 128, f"{plans.size} plans, at most {plans.max_size}"
    grown = free[count // 2] - free[-1]
    within("MiB that the second half of the sizes took for good", grown, 256)
    return {"sizes": count, "plans": plans.size, "MiB taken by the second half": grown}
