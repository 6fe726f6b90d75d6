"""Export a part of a network to a file that runs without this program, and check the file in its own runtime.

restorer-x<scale>.pt2    a program for `torch.export.load`, which needs only torch
restorer-x<scale>.onnx   a graph for ONNX Runtime and others
initial-kernel-x<scale>  likewise: maps the LR image to the kernel that a blind restoration starts from
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kernels_bank.runtime.errors import BadRequestError, JobFailedError
from pipeline.model.blind import BlindUSRNet, restorer_of
from pipeline.model.portable import PortableRestorer
from pipeline.model.portable_initial import PortableInitialKernel
from pipeline.model.spectral import WINDOW
from pipeline.model.usrnet import USRNet

Format = Literal["torch-export", "onnx"]
SUFFIX: dict[Format, str] = {"torch-export": ".pt2", "onnx": ".onnx"}
TOLERANCE = 1e-4  # largest allowed difference from this program's own result, on [0, 1]
CHECKED_SIZES = ((33, 47), (64, 56), (40, 90))  # (h, w) of LR images
_CHECKED_KERNELS = (21, 15, 31)
_SIDES = (16, 8192)  # smallest and largest side of LR images that the restorer accepts
_KERNEL_HALVES = (1, 49)  # k = 2 half + 1
_SIGMA = 0.01
_TWO_WINDOWS = 3 * WINDOW // 2  # LR pixels; exporters would take a single window's count for a constant

Part = Literal["restorer", "initial-kernel"]
Answer = Callable[..., np.ndarray]  # maps inputs to the result of an exported file
Example = tuple[Tensor, ...]


class _Exported(NamedTuple):
    """Describe how a part of a network is exported."""

    module: nn.Module  # built from operations that every runtime has
    ours: Callable[..., Tensor]  # this program's result for the same inputs
    inputs: tuple[str, ...]
    output: str
    examples: list[Example]  # the first one is traced
    shapes: tuple[dict[int, object], ...]  # dynamic dimensions of the inputs


def export_part(
    network: BlindUSRNet | USRNet, folder: Path, form: Format, scale: int, part: Part = "restorer"
) -> tuple[str, float]:
    """Write a part of a network for one scale.

    Args:
        network: in eval mode, on the CPU.
        folder: existing folder; a file of the same name is overwritten.
        form: format of the file.
        scale: a scale that the network supports.
        part: the restorer with a known kernel, or the net of the initial kernel.

    Returns:
        The file's name, and the greatest difference between its answers and the network's at three sizes.

    Raises:
        BadRequestError: an unsupported scale, a network that lacks the part, or a package is missing.
        JobFailedError: the exporter cannot express the network, or the file's results differ; it is not kept.
    """
    if scale not in network.scales:
        known = ", ".join(map(str, network.scales))
        raise BadRequestError(f"--scale {scale}: this model restores {known}")
    if form == "onnx":
        _need_onnx()
    exported = _restorer(network, scale) if part == "restorer" else _initial_kernel(network, scale)
    file = folder / f"{part}-x{scale}{SUFFIX[form]}"
    try:
        with torch.no_grad():
            program = torch.export.export(
                exported.module.eval(), exported.examples[0], dynamic_shapes=exported.shapes, strict=False
            )
        run = _write_program(program, file) if form == "torch-export" else _write_onnx(program, file, exported)
    except Exception as error:  # the exporters raise many kinds of errors, some of them pages long
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise JobFailedError(f"{file.name}: the exporter cannot express it ({reason:.300})") from error
    difference = 0.0
    for inputs in exported.examples:
        with torch.no_grad():
            expected = exported.ours(*inputs).numpy()
        difference = max(difference, float(np.abs(run(*(value.numpy() for value in inputs)) - expected).max()))
    if not difference <= TOLERANCE:
        file.unlink()
        raise JobFailedError(
            f"{file.name}: its answers differ by {difference:.1e} from the network's, {TOLERANCE:g} is allowed"
        )
    return file.name, difference


def _restorer(network: BlindUSRNet | USRNet, scale: int) -> _Exported:
    """Describe the export of the restorer, with dynamic sizes of image and kernel."""
    restorer = restorer_of(network)
    height, width = (torch.export.Dim(name, min=_SIDES[0], max=_SIDES[1]) for name in ("height", "width"))
    side = 2 * torch.export.Dim("kernel_half", min=_KERNEL_HALVES[0], max=_KERNEL_HALVES[1]) + 1
    return _Exported(
        PortableRestorer(restorer, scale),
        lambda lr, kernel, sigma: restorer(lr, kernel, scale, sigma),
        ("lr", "kernel", "sigma"),
        "sr",
        [_example(size, side) for size, side in zip(CHECKED_SIZES, _CHECKED_KERNELS, strict=True)],
        ({2: height, 3: width}, {1: side, 2: side}, {}),
    )


def _initial_kernel(network: BlindUSRNet | USRNet, scale: int) -> _Exported:
    """Describe the export of the net of the initial kernel, with a dynamic image size."""
    if not isinstance(network, BlindUSRNet) or network.spectral is None:
        raise BadRequestError("--part initial-kernel: this model has no net that reads a kernel off a picture")
    # The first is traced, and must have more than one window each way. Examples are rounded to 8 bit, as pictures are:
    # without that noise floor, the log spectrum of a blurred image would show float32's own errors.
    examples = [_example(size, 5) for size in ((64, 90), (48, 57), (80, 49))]
    height, width = (torch.export.Dim(name, min=_TWO_WINDOWS, max=_SIDES[1]) for name in ("height", "width"))
    return _Exported(
        PortableInitialKernel(network, scale),
        lambda lr, sigma: network.initial_kernel(lr, scale, sigma),
        ("lr", "sigma"),
        "kernel",
        [((lr * 255).round() / 255, sigma) for lr, _, sigma in examples],
        ({2: height, 3: width}, {}),
    )


def _write_program(program: torch.export.ExportedProgram, file: Path) -> Answer:
    torch.export.save(program, file)
    module = torch.export.load(file).module()
    return lambda *inputs: np.asarray(module(*map(torch.from_numpy, inputs)).detach())


def _write_onnx(program: torch.export.ExportedProgram, file: Path, exported: _Exported) -> Answer:
    import onnxruntime
    from onnxscript import optimizer

    # The exporter prints its stages to stdout, and warns that torchvision is missing.
    with contextlib.redirect_stdout(sys.stderr), _warnings_off("torch.onnx"):
        graph = torch.onnx.export(
            program,
            (),
            input_names=list(exported.inputs),
            output_names=[exported.output],
            dynamo=True,
            verbose=False,
            # Its rewriting rules replace a summand of 1e-9 by zero, which changes the logarithm of a faint spectrum.
            optimize=False,
        )
    assert graph is not None
    optimizer.fold_constants(graph.model)
    optimizer.remove_unused_nodes(graph.model)
    graph.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda *inputs: np.asarray(session.run(None, dict(zip(exported.inputs, inputs, strict=True)))[0])


@contextlib.contextmanager
def _warnings_off(logger: str) -> Iterator[None]:
    """Keep a package's warnings off standard error; its errors still appear."""
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.setLevel(before)


def _example(size: tuple[int, int], side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make an image of blurred noise, an asymmetric kernel, and a noise level."""
    rng = np.random.default_rng(side)
    noise = torch.from_numpy(rng.random((1, 3, size[0] + 4, size[1] + 4), np.float32))
    kernel = torch.from_numpy(rng.random((1, side, side), np.float32) ** 8)
    return torch.nn.functional.avg_pool2d(noise, 5, 1), kernel / kernel.sum(), torch.tensor([_SIGMA])


def _need_onnx() -> None:
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise BadRequestError(
            f"--format onnx: {', '.join(missing)} is not installed; pip install -e '.[export]' in the checkout"
        )
