"""Write a restorer as a file that runs without this program, and check the file in its own runtime.

restorer-x<scale>.pt2    a program for `torch.export.load`, which needs torch alone
restorer-x<scale>.onnx   a graph for ONNX Runtime and others
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kernels_bank.runtime.errors import BadRequestError, JobFailedError
from pipeline.model.blind import BlindUSRNet, restorer_of
from pipeline.model.portable import PortableRestorer
from pipeline.model.usrnet import USRNet

Format = Literal["torch-export", "onnx"]
SUFFIX: dict[Format, str] = {"torch-export": ".pt2", "onnx": ".onnx"}
TOLERANCE = 1e-4  # of the greatest difference from this program's own answer, on [0, 1]
CHECKED_SIZES = ((33, 47), (64, 56), (40, 90))  # (h, w) of LR images
_CHECKED_KERNELS = (21, 15, 31)
_SIDES = (16, 8192)  # of LR images that the restorer takes
_KERNEL_HALVES = (1, 49)  # k = 2 half + 1
_SIGMA = 0.01

Answer = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # of an exported file to lr, kernel, sigma
Example = tuple[Tensor, Tensor, Tensor]  # lr, kernel, sigma
_INPUTS, _OUTPUT = ("lr", "kernel", "sigma"), "sr"


def export_restorer(network: BlindUSRNet | USRNet, folder: Path, form: Format, scale: int) -> tuple[str, float]:
    """Write the known-kernel restorer of a network for one scale.

    Args:
        network: in eval mode, on the CPU.
        folder: exists; a file of the same name is overwritten.
        form: of the file.
        scale: one of those that the network restores.

    Returns:
        The file's name, and the greatest difference between its answers and the network's at three sizes.

    Raises:
        BadRequestError: another scale, or a package is missing.
        JobFailedError: the exporter cannot express the network, or the file answers differently; it is not kept.
    """
    if scale not in network.scales:
        known = ", ".join(map(str, network.scales))
        raise BadRequestError(f"--scale {scale}: this model restores {known}")
    if form == "onnx":
        _need_onnx()
    restorer = restorer_of(network)
    file = folder / f"restorer-x{scale}{SUFFIX[form]}"
    examples = [_example(size, side) for size, side in zip(CHECKED_SIZES, _CHECKED_KERNELS, strict=True)]
    try:
        program = _traced(PortableRestorer(restorer, scale), examples[0])
        run = _write_program(program, file) if form == "torch-export" else _write_onnx(program, file)
    except Exception as error:  # the exporters raise errors of many kinds, some of them pages long
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise JobFailedError(f"{file.name}: the exporter cannot express it ({reason:.300})") from error
    difference = 0.0
    for lr, kernel, sigma in examples:
        with torch.no_grad():
            expected = restorer(lr, kernel, scale, sigma).numpy()
        difference = max(difference, float(np.abs(run(lr.numpy(), kernel.numpy(), sigma.numpy()) - expected).max()))
    if not difference <= TOLERANCE:
        file.unlink()
        raise JobFailedError(
            f"{file.name}: its answers differ by {difference:.1e} from the network's, {TOLERANCE:g} is allowed"
        )
    return file.name, difference


def _traced(portable: PortableRestorer, example: Example) -> torch.export.ExportedProgram:
    """The program of a restorer, the sizes of image and kernel left open."""
    height, width = (torch.export.Dim(name, min=_SIDES[0], max=_SIDES[1]) for name in ("height", "width"))
    side = 2 * torch.export.Dim("kernel_half", min=_KERNEL_HALVES[0], max=_KERNEL_HALVES[1]) + 1
    with torch.no_grad():
        return torch.export.export(
            portable.eval(), example, dynamic_shapes=({2: height, 3: width}, {1: side, 2: side}, {})
        )


def _write_program(program: torch.export.ExportedProgram, file: Path) -> Answer:
    torch.export.save(program, file)
    module = torch.export.load(file).module()
    return lambda *inputs: np.asarray(module(*map(torch.from_numpy, inputs)).detach())


def _write_onnx(program: torch.export.ExportedProgram, file: Path) -> Answer:
    import onnxruntime

    with contextlib.redirect_stdout(sys.stderr):  # it reports its stages on stdout
        graph = torch.onnx.export(
            program, (), input_names=list(_INPUTS), output_names=[_OUTPUT], dynamo=True, verbose=False
        )
    assert graph is not None
    graph.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda *inputs: np.asarray(session.run(None, dict(zip(_INPUTS, inputs, strict=True)))[0])


def _example(size: tuple[int, int], side: int) -> Example:
    """An image of blurred noise, a lopsided kernel, a noise level."""
    rng = np.random.default_rng(side)
    noise = torch.from_numpy(rng.random((1, 3, size[0] + 4, size[1] + 4), np.float32))
    kernel = torch.from_numpy(rng.random((1, side, side), np.float32) ** 8)
    return torch.nn.functional.avg_pool2d(noise, 5, 1), kernel / kernel.sum(), torch.tensor([_SIGMA])


def _need_onnx() -> None:
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise BadRequestError(f"--format onnx: {', '.join(missing)} is not installed; pip install 'blind-sr[export]'")
