"""torch.compile of the prior: the same numbers where a compiler exists, one warning where none does."""

import shutil
import warnings

import pytest
import torch

from pipeline.model import USRNet
from pipeline.model.compiling import compiler_works
from pipeline.model_config import RestorerConfig

pytestmark = pytest.mark.flow
SMALL = RestorerConfig(unfoldings=2, widths=(4, 4, 4, 4), residual_blocks=1, hyper_hidden=8)


@pytest.fixture
def pair():
    """The same network twice, not compiled and to be compiled."""
    torch.manual_seed(0)
    plain, other = USRNet(SMALL), USRNet(SMALL.changed(compile_prior=True))
    torch.nn.init.normal_(plain.p.m_tail.weight, std=0.1)
    other.load_state_dict(plain.state_dict())
    compiler_works.cache_clear()
    torch.compiler.reset()
    yield plain, other
    compiler_works.cache_clear()
    torch.compiler.reset()


def trained_on(net):
    generator = torch.Generator().manual_seed(0)
    lr, kernel = torch.rand(1, 3, 12, 12, generator=generator), torch.full((1, 5, 5), 0.04)
    out = net(lr, kernel, 2, 0.01)
    net.zero_grad()
    out.square().mean().backward()
    return [out.detach(), *(p.grad for p in net.parameters())]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_it_gives_the_same_output_and_gradients(pair):
    plain, other = pair
    names = list(other.state_dict())
    for found, expected in zip(trained_on(other), trained_on(plain), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert other.p._compiled_call_impl is not None
    assert list(other.state_dict()) == names


def test_without_a_compiler_it_warns_once_and_runs_uncompiled(pair, monkeypatch, tmp_path):
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing compiled earlier is at hand
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (str(tmp_path / "no-such-compiler"),))
    plain, other = pair
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [trained_on(other), trained_on(other)]
    ours = [str(w.message) for w in caught if "compile_prior" in str(w.message)]
    assert len(ours) == 1
    assert "torch.compile does not work for cpu here" in ours[0]
    for step in found:
        for value, expected in zip(step, trained_on(plain), strict=True):
            assert torch.equal(value, expected)
