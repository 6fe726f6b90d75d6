"""Networks go to disk and come back the same; what does not fit is refused, and the message lists it."""

import json

import pytest
import safetensors.torch
import torch

from kernels_bank.runtime.errors import ArtefactError
from pipeline.model import BlindUSRNet, USRNet
from pipeline.model.weights import load_model, load_usrnet, read_usrnet, save_model, usrnet_config
from pipeline.model_config import RestorerConfig

FULL = RestorerConfig(unfoldings=8, widths=(64, 128, 256, 512), hyper_hidden=64)


def published(small, **changes) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return USRNet(small(global_skip=False, **changes).restorer).state_dict()


def test_the_published_file_is_the_tiny_network(shared):
    net = load_usrnet(shared / "data" / "usrnet_tiny.pth")
    assert not net.training
    assert sum(p.numel() for p in net.parameters()) == 590_332
    config = net.config
    assert (config.unfoldings, config.widths, config.residual_blocks, config.hyper_hidden) == (
        6,
        (16, 32, 64, 64),
        2,
        32,
    )
    assert net.scales == (1, 2, 3, 4)
    assert (config.x0, config.global_skip) == ("nearest", False)


@pytest.mark.parametrize("config", [RestorerConfig(), FULL, RestorerConfig(residual_blocks=3, unfoldings=5)])
def test_architecture_is_read_off_the_tensors(config):
    """Shapes alone say it: the full network is read without its 68 MB. A published prior has no global skip."""
    with torch.device("meta"):
        state = USRNet(config).state_dict()
    found = usrnet_config(state, "memory")
    for field in ("unfoldings", "widths", "residual_blocks", "hyper_hidden"):
        assert getattr(found, field) == getattr(config, field)
    assert found.global_skip is False


LAYOUTS = {
    "plain": lambda state: state,
    "params": lambda state: {"params": state},
    "averaged beside": lambda state: {"params": {"q": torch.zeros(1)}, "params_ema": state, "iter": 5},
    "DataParallel": lambda state: {f"module.{name}": value for name, value in state.items()},
}


@pytest.mark.parametrize("wrap", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_published_checkpoints_load_to_the_last_bit(wrap, small, tmp_path):
    state = published(small)
    torch.save(wrap(state), tmp_path / "net.pth")
    loaded = load_usrnet(tmp_path / "net.pth").state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_what_is_read_of_a_file_and_what_is_left_is_said(small, tmp_path):
    torch.save(LAYOUTS["averaged beside"](published(small)), tmp_path / "net.pth")
    found = read_usrnet(tmp_path / "net.pth")[1]
    assert (found.read, found.left) == ("params_ema", ("iter", "params"))


def test_a_checkpoint_of_dan_is_refused_in_one_line(tmp_path):
    """Its Estimator's tensors have the names of ours, but their meaning is another."""
    names = ("Restorer.head.weight", "Estimator.head_LR.weight", "Estimator.out.bias", "encoder", "init_ker_map")
    torch.save({name: torch.zeros(1) for name in names}, tmp_path / "latest_G.pth")
    with pytest.raises(ArtefactError, match=r"latest_G\.pth: a checkpoint of DAN, which cannot be used here: .*\Z"):
        load_usrnet(tmp_path / "latest_G.pth")


def test_safetensors_load_as_well(small, tmp_path):
    safetensors.torch.save_file(published(small), tmp_path / "net.safetensors")
    assert isinstance(load_usrnet(tmp_path / "net.safetensors"), USRNet)


def test_every_missing_leftover_and_misshapen_tensor_is_listed(small, tmp_path):
    state = published(small)
    del state["p.m_up1.1.res.0.weight"], state["h.mlp.2.bias"]
    state |= {"p.m_extra.weight": torch.zeros(1), "q": torch.zeros(1), "p.m_tail.weight": torch.zeros(3, 4, 5, 5)}
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ArtefactError) as raised:
        load_usrnet(tmp_path / "net.pth")
    for part in (
        "missing h.mlp.2.bias, p.m_up1.1.res.0.weight",
        "left over p.m_extra.weight, q",
        "p.m_tail.weight is (3, 4, 5, 5), expected (3, 4, 3, 3)",
    ):
        assert part in str(raised.value)


class Payload:
    """What a hostile checkpoint would hold: unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_is_unpickled_but_tensors(tmp_path):
    torch.save({"h.mlp.4.weight": Payload(tmp_path / "owned")}, tmp_path / "net.pth")
    with pytest.raises(ArtefactError, match="not a checkpoint of tensors"):
        load_usrnet(tmp_path / "net.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a checkpoint of tensors"),
        (b"an image, perhaps", "not a checkpoint of tensors"),
        ({"weights": 3}, "not a state dict"),
        (
            torch.nn.Linear(1, 1),
            r"it holds other objects, which are not loaded; save the network's state_dict\(\) alone",
        ),
        ({"p.m_head.weight": torch.zeros(4, 4, 3, 3)}, "it has no tensor"),
    ],
)
def test_other_files_are_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "net.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ArtefactError, match=message) as raised:
        load_usrnet(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["blind", "usrnet"])
def test_a_saved_model_comes_back_the_same(kind, small, codec, tmp_path):
    torch.manual_seed(0)
    model = BlindUSRNet(small(scales=(2, 3)), codec) if kind == "blind" else USRNet(small(scales=(2, 3)).restorer)
    save_model(model, tmp_path / "m", {"run": "r1"})
    back = load_model(tmp_path / "m")
    assert type(back) is type(model)
    assert back.config == model.config
    assert not back.training
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)
    if isinstance(back, BlindUSRNet):
        assert back.codec.digest == codec.digest
        lr = torch.rand(1, 3, 12, 12)
        with torch.no_grad():
            assert torch.equal(back(lr, 3, 0.01).sr, model.eval()(lr, 3, 0.01).sr)


def test_a_changed_file_or_a_newer_schema_is_refused(small, tmp_path):
    save_model(USRNet(small().restorer), tmp_path, {})
    weights, manifest = tmp_path / "weights.safetensors", tmp_path / "model.json"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtefactError, match=r"weights\.safetensors: sha256 \w{12} is not the \w{12}"):
        load_model(tmp_path)
    weights.write_bytes(data)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": 5}))
    with pytest.raises(ArtefactError, match="schema version 5, this program reads 1 to 4; update it"):
        load_model(tmp_path)
