"""The network on the device against the same network on the CPU in float64: parts, whole, sizes, scales, precisions."""

from __future__ import annotations

import torch

from pipeline.degrade import degrade
from pipeline.model import BlindUSRNet, USRNet, data_step
from pipeline.model.weights import load_model
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig
from pipeline.shipped import shipped_folder
from tests.cuda.place import (
    FULL,
    TINY,
    Facts,
    Place,
    codec,
    float32,
    has_tf32,
    kernels,
    largest,
    pictures,
    rms,
    skip,
    within,
)

SCALES = (1, 2, 3, 4)


def check_data_step(place: Place) -> Facts:
    """The data step equals that of the CPU in float64 within 2e-5, at all scales and odd sizes."""
    worst = 0.0
    for scale in SCALES:
        lr, kernel = pictures(2, 33, 47).double(), kernels(2, 25).double()
        hr = pictures(2, 33 * scale, 47 * scale).double()
        alpha = torch.tensor([1e-3, 1e-2]).double().reshape(2, 1, 1, 1)
        expected = data_step(hr, lr, kernel, alpha, scale)
        ours = data_step(*(t.float().to(place.device) for t in (hr, lr, kernel, alpha)), scale)
        worst = max(worst, largest(ours, expected))
        assert ours.dtype == torch.float32
    within("data step", worst, 2e-5)
    return {"largest difference": worst}


def check_fft_layouts(place: Place) -> Facts:
    """Inputs of FFTs in any layout (channels last, cut out, expanded) give what contiguous ones give, within 1e-5."""
    lr, hr = pictures(2, 24, 32).to(place.device), pictures(2, 48, 64).to(place.device)
    kernel, alpha = kernels(1).to(place.device), torch.full((1, 1, 1, 1), 1e-2, device=place.device)
    expected = data_step(hr, lr, kernel.expand(2, -1, -1).contiguous(), alpha, 2)
    around = torch.zeros(2, 3, 60, 80, device=place.device)
    around[..., 5:53, 7:71] = hr
    last = torch.channels_last
    variants = {
        "channels last": data_step(
            hr.contiguous(memory_format=last), lr.contiguous(memory_format=last), kernel.expand(2, -1, -1), alpha, 2
        ),
        "cut out": data_step(around[..., 5:53, 7:71], lr, kernel.expand(2, -1, -1), alpha, 2),
        "transposed": data_step(hr.mT.contiguous().mT, lr.mT.contiguous().mT, kernel.expand(2, -1, -1), alpha, 2),
    }
    for name, found in variants.items():
        within(name, largest(found, expected), 1e-5)
    return {name: largest(found, expected) for name, found in variants.items()}


def check_degradation(place: Place) -> Facts:
    """The degradation equals that of the CPU in float64 within 1e-5: strided convolution and FFT, all scales."""
    worst = 0.0
    with float32(tf32=False):
        for scale, size in ((1, 21), (2, 21), (3, 25), (4, 25), (2, 31)):
            hr, kernel = pictures(3, 20 * scale, 24 * scale).double(), kernels(3, size).double()
            if size > min(hr.shape[-2:]):
                hr, kernel = pictures(3, 40 * scale, 44 * scale).double(), kernel
            ours = degrade(hr.float().to(place.device), kernel.float().to(place.device), scale)
            worst = max(worst, largest(ours, degrade(hr, kernel, scale)))
    within("degradation", worst, 1e-5)
    return {"largest difference": worst}


def _restored(network: USRNet, place: Place, scale: int, side: tuple[int, int], *, bf16: bool) -> tuple[float, float]:
    """Largest difference and RMS between the device and float64 on the CPU."""
    lr, kernel, sigma = pictures(2, *side), kernels(2), torch.tensor([0.0, 0.02])
    with torch.no_grad():
        expected = network.cpu().double()(lr.double(), kernel.double(), scale, sigma.double())
        network.float().to(place.device)
        with torch.autocast(place.device.type, torch.bfloat16, enabled=bf16):
            ours = network(lr.to(place.device), kernel.to(place.device), scale, sigma.to(place.device))
    return largest(ours, expected), rms(ours, expected)


def _trained(place: Place, *, scales: tuple[int, ...] = (2,), bf16: bool = False) -> tuple[float, float]:
    """The trained restorer of shipped:blind-sr-x2, on odd sizes, perhaps told other scales too."""
    network = load_model(shipped_folder("shipped:blind-sr-x2")).restorer.eval()
    sides = [(place.pick(21 + 4 * scale, 20 + scale), place.pick(37, 21)) for scale in scales]
    found = [_restored(network, place, scale, side, bf16=bf16) for scale, side in zip(scales, sides, strict=True)]
    return max(worst for worst, _ in found), max(mean for _, mean in found)


def check_restorer_float32(place: Place) -> Facts:
    """A trained restorer equals float64 on the CPU within 1e-3 of full range: scales 1 to 4, odd sizes."""
    with float32(tf32=False):
        worst, mean = _trained(place, scales=SCALES)
    within("largest difference", worst, 1e-3)
    return {"largest difference": worst, "RMS": mean}


def check_restorer_tf32(place: Place) -> Facts:
    """The same at x2 in TensorFloat-32 within 2e-3 RMS, half a grey level (7e-4 with its rounding done on a CPU)."""
    if not has_tf32(place):
        skip("needs a card with TensorFloat-32 (compute capability 8.0)")
    with float32(tf32=True):
        worst, mean = _trained(place)
    within("RMS", mean, 2e-3)
    return {"largest difference": worst, "RMS": mean}


def check_restorer_bf16(place: Place) -> Facts:
    """The same at x2 in bf16 within 3e-2 RMS (1.2e-2 on a CPU): it is for training, not for restoring."""
    worst, mean = _trained(place, bf16=True)
    within("RMS", mean, 3e-2)
    return {"largest difference": worst, "RMS": mean}


def check_full_width(place: Place) -> Facts:
    """The restorer of full width has 17,016,016 parameters and equals float64 on the CPU within 5e-4."""
    torch.manual_seed(0)
    config = FULL.restorer if place.is_card else FULL.restorer.changed(unfoldings=2)
    network = USRNet(config).eval()
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters == 17_016_016 - 2 * 65 * (8 - config.unfoldings), parameters
    with torch.no_grad():
        network.p.m_tail.weight.normal_(std=0.01)
    with float32(tf32=False):
        worst, mean = _restored(network, place, 2, (place.pick(32, 12), 12), bf16=False)
    within("largest difference", worst, 5e-4)
    return {"parameters": parameters, "largest difference": worst, "RMS": mean}


def check_alternation(place: Place) -> Facts:
    """Kernel estimates in training's alternation equal float64 on the CPU within 1e-3 (sum of absolute differences)."""
    torch.manual_seed(0)
    worst = 0.0
    restorer = RestorerConfig(unfoldings=4) if place.is_card else TINY.restorer
    for schedule, start in (("rounds", "delta"), ("interleaved", "spectral")):
        settings = ModelConfig(
            scales=(2, 3),
            restorer=restorer,
            kernel=KernelConfig(rounds=2, schedule=schedule, initial=start),
        )
        network = BlindUSRNet(settings, codec()).eval()
        lr = pictures(2, place.pick(40, 28), place.pick(36, 24))
        with torch.no_grad(), float32(tf32=False):
            expected = network.double()(lr.double(), 3, 0.01)
            ours = network.float().to(place.device)(lr.to(place.device), 3, 0.01)
        difference = (ours.kernel.cpu().double() - expected.kernel).abs().sum((1, 2)).max()
        worst = max(worst, float(difference))
    within("kernel", worst, 1e-3)
    return {"kernel, sum of differences": worst}


def check_kernel_steps_and_guard(place: Place) -> Facts:
    """Kernel steps and the guard's choices are those of the CPU: kernels within 0.02 (sum of differences)."""
    network = load_model(shipped_folder("shipped:blind-sr-x2")).eval()
    blur = kernels(2, network.kernel_size)
    side = place.pick(96, 32)
    lr = degrade(pictures(2, 2 * side, 2 * side), blur, 2)
    with torch.inference_mode(), float32(tf32=False):
        expected = network.infer(lr, 2, 0.0)
        ours = network.to(place.device).infer(lr.to(place.device), 2, 0.0)
    difference = float((ours.kernel.cpu() - expected.kernel).abs().sum((1, 2)).max())
    within("kernel", difference, 0.02)
    assert ours.kernel_round.tolist() == expected.kernel_round.tolist(), "the guard chose otherwise"
    return {"kernel, sum of differences": difference, "image, RMS": rms(ours.sr, expected.sr)}
