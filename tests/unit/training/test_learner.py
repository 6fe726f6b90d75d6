"""The starting point of a run: its kernel code and its weights."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kernels_bank import KernelCodec, sample_gaussian
from kernels_bank.runtime.errors import BadRequestError
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.model import BlindUSRNet
from pipeline.model.weights import save_model
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig
from pipeline.training import start as starting
from pipeline.training.objective import learns

MODEL = ModelConfig(
    restorer=RestorerConfig(unfoldings=2, widths=(4, 4, 4, 4), residual_blocks=1), kernel=KernelConfig(rounds=0)
)


def codec(seed, size=9):
    rng = np.random.Generator(np.random.Philox(seed))
    return KernelCodec.fit(sample_gaussian(200, size, rng=rng), components=4)


@pytest.fixture
def before(tmp_path):
    """A finished blind model, in a folder."""
    torch.manual_seed(3)
    network = BlindUSRNet(MODEL, codec(1))
    save_model(network, tmp_path / "model", {})
    return network, str(tmp_path / "model")


def start(monkeypatch, bank, scale=2, model=MODEL, **train):
    """The starting point of a run on a bank with this code, whose composites are of this scale."""
    opened = SimpleNamespace(codec=bank, spec=SimpleNamespace(size=bank.size, scale=scale))
    monkeypatch.setattr(starting.KernelBank, "open", lambda uri: opened)
    data = DataConfig(shards="shards", bank="the-bank")
    return starting.starting_point(RunConfig(name="x", model=model, data=data, train=TrainConfig(steps=1, **train)))


def test_from_scratch_the_code_is_the_banks(monkeypatch):
    bank = codec(2)
    assert start(monkeypatch, bank) == starting.InitialWeights(bank, {})


def test_composites_teach_the_restorer_alone(monkeypatch):
    bank = replace(codec(2), signed=True)
    with pytest.raises(BadRequestError, match="the-bank: holds composites, which the restorer alone learns from"):
        start(monkeypatch, bank)
    assert start(monkeypatch, bank, learn="restorer").codec is bank
    with pytest.raises(BadRequestError, match=r"its composites are of scale 4, model\.scales are 2; train one scale"):
        start(monkeypatch, bank, scale=4, learn="restorer")


def test_the_code_of_composites_is_learned_from_by_the_restorer_alone(monkeypatch, tmp_path):
    """Also where it comes with a model, and the bank's own is not signed."""
    save_model(BlindUSRNet(MODEL, replace(codec(1), signed=True)), tmp_path, {})
    with pytest.raises(BadRequestError, match=r"its kernel code is that of composites.*train\.start_parts restorer"):
        start(monkeypatch, codec(2), start_from=str(tmp_path))
    assert start(monkeypatch, codec(2), start_from=str(tmp_path), learn="restorer").codec.signed
    assert not start(monkeypatch, codec(2), start_from=str(tmp_path), start_parts="restorer").codec.signed


def test_a_whole_model_keeps_its_own_code(monkeypatch, before):
    network, uri = before
    found = start(monkeypatch, codec(2), start_from=uri)
    assert found.codec.digest == network.codec.digest != codec(2).digest
    assert found.tensors.keys() == network.state_dict().keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in network.state_dict().items())


def test_the_restorer_alone_comes_under_the_banks_code(monkeypatch, before):
    network, uri = before
    found = start(monkeypatch, codec(2, size=11), start_from=uri, start_parts="restorer")
    assert found.codec.size == 11
    assert {name.partition(".")[0] for name in found.tensors} == {"restorer"}
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in found.tensors.items())


def test_kernels_of_another_size_are_refused_with_the_way_out(monkeypatch, before):
    with pytest.raises(BadRequestError, match=r"9 pixels wide, those of the-bank 11; train.start_parts restorer"):
        start(monkeypatch, codec(2, size=11), start_from=before[1])


def test_a_prior_that_was_trained_without_the_skip_is_refused(monkeypatch, before, tmp_path):
    """Its tensors would fit."""
    network, uri = before
    without = BlindUSRNet(MODEL.with_restorer(global_skip=False), network.codec)
    save_model(without, uri, {})
    with pytest.raises(BadRequestError, match=r"without a global skip; set model.restorer.global_skip to false"):
        start(monkeypatch, codec(2), start_from=uri)
    torch.save(without.restorer.state_dict(), tmp_path / "published.pth")
    with pytest.raises(BadRequestError, match=r"published.pth: its prior was trained without a global skip"):
        start(monkeypatch, codec(2), start_from=str(tmp_path / "published.pth"))


def test_a_prior_of_kernels_goes_along_and_is_not_trained(monkeypatch, tmp_path):
    """A run neither drops it in silence nor draws one that nobody has fitted; without kernel steps it is of no use."""

    def of(**kernel):
        return MODEL.model_copy(update={"kernel": KernelConfig(rounds=0, **kernel)})

    torch.manual_seed(3)
    network = BlindUSRNet(of(steps=5, prior=True), codec(1))
    torch.nn.init.normal_(network.prior.last.weight)
    save_model(network, tmp_path / "with", {})
    save_model(BlindUSRNet(of(steps=5), codec(1)), tmp_path / "without", {})
    torch.save(network.restorer.state_dict(), tmp_path / "published.pth")
    source = {"model": of(steps=5, prior=True), "start_from": str(tmp_path / "with")}
    found = start(monkeypatch, codec(2), **source).tensors
    assert torch.equal(found["prior.last.weight"], network.prior.last.weight)
    for learn in ("all", "kernel", "restorer", "spectral"):
        assert not learns(learn, "prior.last.weight")
    with pytest.raises(
        BadRequestError, match=r"has a kernel prior; set model\.kernel\.prior to true, or train\.start_"
    ):
        start(monkeypatch, codec(2), **source | {"model": of(steps=5)})
    assert not [n for n in start(monkeypatch, codec(2), **source | {"model": of()}).tensors if n.startswith("prior.")]
    skip = source["model"].with_restorer(global_skip=False)
    for changed in (
        {"start_from": None},
        {"start_parts": "restorer"},
        {"start_from": str(tmp_path / "without")},
        {"start_from": str(tmp_path / "published.pth"), "model": skip},
    ):
        with pytest.raises(BadRequestError, match=r"there is none, and a run trains none; leave it out"):
            start(monkeypatch, codec(2), **source | changed)


def test_a_model_of_another_shape_is_refused_by_the_tensors_names(monkeypatch, before):
    network, uri = before
    save_model(BlindUSRNet(MODEL.with_restorer(widths=(8, 4, 4, 4)), network.codec), uri, {})
    with pytest.raises(BadRequestError, match=r"does not fit the network of this config: restorer\.p\."):
        start(monkeypatch, codec(2), start_from=uri)
    averaging = MODEL.model_copy(update={"kernel": KernelConfig(rounds=0, initial="mean")})
    save_model(BlindUSRNet(averaging, network.codec), uri, {})
    with pytest.raises(BadRequestError, match=r"does not fit the network of this config: spectral\."):
        start(monkeypatch, codec(2), start_from=uri)


def test_a_model_of_several_scales_goes_on_at_one_of_them(monkeypatch, tmp_path):
    """The estimator's heads for the other scales stay behind; a head that it has not is missed by name."""
    kernel = KernelConfig(initial="delta", rounds=1, schedule="rounds")
    of_scales = {
        scales: MODEL.model_copy(update={"kernel": kernel, "scales": scales}) for scales in [(2, 3), (3,), (4,)]
    }
    torch.manual_seed(3)
    network = BlindUSRNet(of_scales[2, 3], codec(1))
    save_model(network, tmp_path, {})
    found = start(monkeypatch, codec(2), model=of_scales[3,], start_from=str(tmp_path)).tensors
    assert found.keys() == BlindUSRNet(of_scales[3,], codec(1)).state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in found.items())
    with pytest.raises(BadRequestError, match=r"does not fit the network of this config: estimator\.head_HR\.4"):
        start(monkeypatch, codec(2), model=of_scales[4,], start_from=str(tmp_path))
