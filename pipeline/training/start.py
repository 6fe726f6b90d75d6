"""The starting point of a new run: its kernel code and its initial weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from kernels_bank import KernelBank, KernelCodec
from kernels_bank.runtime.errors import BadRequestError
from pipeline.catalogue import locate, open_network
from pipeline.config import RunConfig
from pipeline.model import BlindUSRNet, restorer_of
from pipeline.training.learner import build_network

_HEAD = "estimator.head_HR."  # what follows in the tensor's name is the scale


class InitialWeights(NamedTuple):
    """Hold the kernel code and the weights that a new run starts from."""

    codec: KernelCodec
    # Weights of the parts that are not drawn anew: empty from scratch, None if the run resumes from a checkpoint.
    tensors: dict[str, Tensor] | None


def refuse_composites(config: RunConfig, bank: KernelBank) -> None:
    """Refuse composite kernels for a run that cannot learn from them.

    The network estimates a blur, >= 0, and adds the reduction itself, as the camera of the data does. Moreover, a
    composite is for one scale.

    Raises:
        BadRequestError: parts other than the restorer would learn from composites, or at another scale.
    """
    if not bank.codec.signed:
        return
    if config.data.camera or config.train.learn != "restorer":
        raise BadRequestError(
            f"data.bank {config.data.bank}: holds composites, which the restorer alone learns from, without data.camera"
            "; set train.learn to restorer, or take a bank of blurs and name the reductions in data.camera"
        )
    if config.model.scales != (bank.spec.scale,):
        raise BadRequestError(
            f"data.bank {config.data.bank}: its composites are of scale {bank.spec.scale}, model.scales are "
            f"{', '.join(map(str, config.model.scales))}; train one scale, with a bank of that scale"
        )


def starting_point(config: RunConfig) -> InitialWeights:
    """Load the kernel code and the weights that a new run starts from, checked against its network.

    A published USRNet provides the restorer, a blind model the parts named in `start_parts`. A blind model that is
    taken whole keeps the kernel code that its weights were trained with, whatever bank it now learns from. Otherwise
    the bank's code is used.

    Raises:
        BadRequestError: there is no such model, its kernels have another size, or its tensors do not fit.
    """
    bank, train = KernelBank.open(config.data.bank), config.train
    refuse_composites(config, bank)
    if train.start_from is None:
        _check_prior(config, None)
        return InitialWeights(bank.codec, {})
    found = open_network(locate(train.start_from))[0]
    skips = restorer_of(found).config.global_skip
    if skips != config.model.restorer.global_skip:
        # The tensors would fit, but compute another function.
        how = "with" if skips else "without"
        raise BadRequestError(
            f"train.start_from {train.start_from}: its prior was trained {how} a global skip; "
            f"set model.restorer.global_skip to {str(skips).lower()}"
        )
    whole = found if isinstance(found, BlindUSRNet) and train.start_parts == "all" else None
    _check_prior(config, whole)
    if whole is not None:
        codec, tensors = whole.codec, _of_use(whole.state_dict(), config)
        if codec.signed and train.learn != "restorer":
            raise BadRequestError(
                f"train.start_from {train.start_from}: its kernel code is that of composites, which the restorer alone "
                "learns from; train.start_parts restorer takes that and the code of data.bank"
            )
        if codec.size != bank.spec.size:
            raise BadRequestError(
                f"train.start_from {train.start_from}: its kernels are {codec.size} pixels wide, those of "
                f"{config.data.bank} {bank.spec.size}; train.start_parts restorer takes the restorer alone"
            )
    else:
        codec = bank.codec
        tensors = {f"restorer.{name}": value for name, value in restorer_of(found).state_dict().items()}
    own = build_network(config, codec).state_dict()
    wrong = [name for name, value in tensors.items() if name not in own or own[name].shape != value.shape]
    if whole is not None:
        wrong += own.keys() - tensors.keys()
    if wrong:
        raise BadRequestError(
            f"train.start_from {train.start_from}: does not fit the network of this config: "
            f"{', '.join(sorted(wrong)[:8])}" + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        )
    return InitialWeights(codec, tensors)


def _check_prior(config: RunConfig, whole: BlindUSRNet | None) -> None:
    """Check that kernel steps with a kernel prior get one: no run trains it, and none drops it without a request."""
    train, kernel = config.train, config.model.kernel
    there = whole is not None and whole.config.kernel.prior
    if kernel.prior and not there:
        where = "without train.start_from" if train.start_from is None else f"with train.start_from {train.start_from}"
        raise BadRequestError(
            f"model.kernel.prior: {where} there is none, and a run trains none; leave it out, or start from a model "
            "that has one"
        )
    if there and kernel.steps and not kernel.prior:
        raise BadRequestError(
            f"train.start_from {train.start_from}: has a kernel prior; set model.kernel.prior to true, or "
            "train.start_parts to restorer, which takes nothing else"
        )


def _of_use(tensors: Mapping[str, Tensor], config: RunConfig) -> dict[str, Tensor]:
    """Leave out the estimator's heads for other scales, and the kernel prior of a run without kernel steps."""
    return {
        name: value
        for name, value in tensors.items()
        if not (name.startswith("prior.") and not config.model.kernel.prior)
        and not (name.startswith(_HEAD) and int(name.removeprefix(_HEAD).partition(".")[0]) not in config.model.scales)
    }
