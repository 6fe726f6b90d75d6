"""`jobs/registry.py` from the command line: imports, its other commands, and its messages for bad requests."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jobs.registry import Registry, main
from pipeline.cli import run
from pipeline.inference import Restorer
from pipeline.model import USRNet
from pipeline.model.weights import load_model, load_usrnet, save_model
from pipeline.model_config import RestorerConfig
from pipeline.tracking.store import client

pytestmark = pytest.mark.flow


@pytest.fixture
def registry_job(sqlite_store: str, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """`jobs/registry.py` in this process: its output, or its error as an exception."""

    def call(*arguments: str) -> str:
        capsys.readouterr()
        try:
            run(Registry, main, [*arguments, "--tracking-uri", sqlite_store])
        except SystemExit as stop:
            error = capsys.readouterr().err
            assert error.startswith("error: ")
            assert error.count("\n") == 1
            raise RuntimeError(f"{stop.code} {error}") from None
        return capsys.readouterr().out

    return call


@pytest.fixture
def usrnet(tmp_path: Path) -> Path:
    """A small USRNet as it would be published."""
    torch.manual_seed(0)
    network = USRNet(RestorerConfig(unfoldings=2, widths=(4, 4, 4, 4), residual_blocks=1, x0="nearest"))
    torch.save(network.state_dict(), tmp_path / "usrnet.pth")
    return tmp_path / "usrnet.pth"


def test_published_weights_are_imported_once_and_give_the_same_network(registry_job, usrnet: Path, tmp_path: Path):
    answer = json.loads(registry_job("import-weights", str(usrnet), "--name", "usrnet", "--json"))
    assert (answer["new"], answer["version"], answer["aliases"]) == (True, 1, ["candidate"])
    assert answer["origin"]["import.sha256"] == hashlib.sha256(usrnet.read_bytes()).hexdigest()
    assert answer["input"]["blind"] is False
    again = json.loads(registry_job("import-weights", str(usrnet), "--name", "usrnet", "--alias", "ours", "--json"))
    assert (again["new"], again["version"], again["aliases"]) == (False, 1, ["candidate", "ours"])
    registry_job("export", "usrnet/1", "--output", str(tmp_path / "out"))
    ours, theirs = Restorer.load(tmp_path / "out").network.state_dict(), load_usrnet(usrnet).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_kairs_moving_average_is_imported_with_the_network_beside_it(registry_job, usrnet: Path, tmp_path: Path):
    state = torch.load(usrnet, weights_only=True)
    torch.save(state, tmp_path / "5000_G.pth")
    torch.save({name: 2 * value for name, value in state.items()}, tmp_path / "5000_E.pth")
    torch.save({"state": {}, "param_groups": []}, tmp_path / "5000_optimizerG.pth")
    said = registry_job("import-weights", str(tmp_path / "5000_E.pth"), "--name", "kair")
    assert "read: all tensors (the moving average); 5000_G.pth as the raw weights; left: nothing" in said
    registry_job("export", "kair/1", "--output", str(tmp_path / "out"))
    averaged, last = load_model(tmp_path / "out"), load_model(tmp_path / "out", "weights-raw.safetensors")
    assert all(torch.equal(averaged.state_dict()[name], 2 * state[name]) for name in state)
    assert all(torch.equal(last.state_dict()[name], state[name]) for name in state)
    said = registry_job("import-weights", str(tmp_path / "5000_G.pth"), "--name", "kair")
    assert "version 2" in said
    assert "left: the moving average 5000_E.pth" in said
    with pytest.raises(RuntimeError, match=r"5000_optimizerG\.pth: not a state dict"):
        registry_job("import-weights", str(tmp_path / "5000_optimizerG.pth"), "--name", "kair")


@torch.no_grad()
def test_a_version_is_exported_as_a_program_that_torch_alone_runs(registry_job, usrnet: Path, tmp_path: Path):
    registry_job("import-weights", str(usrnet), "--name", "usrnet")
    request = ("export", "usrnet/1", "--output", str(tmp_path / "out"), "--format", "torch-export")
    with pytest.raises(RuntimeError, match=r"2 error: models:/usrnet/1 restores 1, 2, 3, 4: choose one with --scale"):
        registry_job(*request)
    answer = json.loads(registry_job(*request, "--scale", "2", "--json"))
    assert json.loads((tmp_path / "out" / "origin.json").read_text())["difference"] == answer["difference"] <= 1e-4
    program = torch.export.load(tmp_path / "out" / "restorer-x2.pt2").module()
    lr, kernel, sigma = torch.rand(1, 3, 27, 40), torch.full((1, 5, 5), 0.04), torch.tensor([0.02])
    assert (program(lr, kernel, sigma) - load_usrnet(usrnet)(lr, kernel, 2, sigma)).abs().max() < 1e-4
    with pytest.raises(RuntimeError, match=r"2 error: .*out is there already"):
        registry_job(*request, "--scale", "2")


def test_a_checkpoint_is_imported_by_its_averaged_weights(
    registry_job, model_folder: Callable[[int], Path], tmp_path: Path
):
    last, averaged = load_model(model_folder(1)), load_model(model_folder(2))
    checkpoint = tmp_path / "checkpoint"
    save_model(last, checkpoint, provenance={}, averaged=averaged.state_dict())
    registry_job("import-weights", str(checkpoint), "--name", "ours")
    registry_job("export", "ours@candidate", "--output", str(tmp_path / "out"))
    out = tmp_path / "out"
    assert (out / "weights.safetensors").read_bytes() == (model_folder(2) / "weights.safetensors").read_bytes()
    assert (out / "README.md").exists()


class Harmful:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_weights_from_outside_are_not_executed(registry_job, tmp_path: Path):
    torch.save({"p": Harmful(tmp_path / "executed")}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Harmful(tmp_path / "executed"), protocol=2))
    for file in ("a.pth", "b.pth"):
        with pytest.raises(RuntimeError, match=r"2 error: .*not a checkpoint of tensors"):
            registry_job("import-weights", str(tmp_path / file), "--name", "usrnet")
    assert not (tmp_path / "executed").exists()


def test_the_commands_of_the_job(registry_job, sqlite_store, model_name, add_version: Callable[..., int], tmp_path):
    assert "no models are registered yet" in registry_job("list")
    for number, psnr in ((1, 30.0), (2, 30.5), (3, 20.0)):
        add_version(sqlite_store, number, {"psnr.float.x2.blind": psnr, "psnr.float.x2.bicubic": 25.0})
    (row,) = json.loads(registry_job("list", "--json"))
    assert (row["name"], row["versions"], row["aliases"]) == (model_name, 3, {"candidate": 3})
    assert model_name in registry_job("list")

    assert f"{model_name}: champion is version 1 now" in registry_job("promote", model_name, "1")
    assert f"{model_name}: champion is version 2 now, before version 1" in registry_job("promote", model_name, "2")
    with pytest.raises(RuntimeError, match=r"2 error: .*falls from 30\.50 to 20\.00 dB"):
        registry_job("promote", model_name, "3")
    forced = json.loads(registry_job("promote", model_name, "3", "--force", "a test", "--json"))
    assert (forced["previous"], forced["reason"]) == (2, "a test")
    assert "champion is version 2 now, before version 3" in registry_job("rollback", model_name)

    shown = json.loads(registry_job("show", f"{model_name}@champion", "--json"))
    assert shown["version"] == 2
    assert [(m["action"], m["previous"]) for m in shown["moves"]] == [("promote", 1), ("rollback", 3)]
    assert "a test" in registry_job("show", model_name)
    assert "a test" in registry_job("show", f"{model_name}/3")

    compared = json.loads(registry_job("compare", f"{model_name}/1", f"{model_name}/2", "--json"))
    assert compared["metrics"]["psnr.float.x2.blind"] == [30.0, 30.5, 0.5]
    assert compared["metrics"]["psnr.float.x2.bicubic"] == [25.0, 25.0, 0.0]
    assert (compared["same_files"], compared["config"]) == (False, {})
    assert "+0.500" in registry_job("compare", f"{model_name}/1", f"{model_name}/2")

    out = tmp_path / "out"
    registry_job("export", f"{model_name}@champion", "--output", str(out))
    assert shown["digest"] == hashlib.sha256((out / "model.json").read_bytes()).hexdigest()
    with pytest.raises(RuntimeError, match=r"2 error: .*nothing is overwritten"):
        registry_job("export", f"{model_name}@champion", "--output", str(out))

    would = json.loads(registry_job("gc", "--keep", "0", "--older-than", "0", "--json"))
    assert would == []  # 1 is the way back, 2 champion, 3 candidate
    client(sqlite_store).delete_registered_model_alias(model_name, "candidate")
    assert "1 versions would be deleted" in registry_job("gc", "--keep", "0", "--older-than", "0")
    assert "1 versions deleted" in registry_job("gc", "--keep", "0", "--older-than", "0", "--delete")
    assert json.loads(registry_job("list", "--json"))[0]["versions"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nobody"], "no model 'nobody' in the registry; it has: none"),
        (["promote", "nobody", "1"], "no model 'nobody'"),
        (["promote", "nobody", "one"], r"promote\.version: .*integer"),
        (["promote", "nobody", "1", "--alias", "latest"], r"promote\.alias: alias 'latest': use 1 to 200 letters"),
        (["rollback", "nobody"], "no model 'nobody'"),
        (["import-weights", "nowhere.pth", "--name", "a"], r"nowhere\.pth: no such file"),
        (["import-weights", "nowhere", "--name", "a"], "neither a .pth or .safetensors file"),
        (["import-weights", "a.pth", "--name", "a/b"], r"import_weights\.name: model name 'a/b': it cannot hold '/'"),
        (["forget"], "invalid choice: 'forget'"),
    ],
)
def test_bad_requests_are_one_line_and_exit_2(registry_job, arguments: list[str], message: str):
    with pytest.raises(RuntimeError, match=f"2 error: .*{message}"):
        registry_job(*arguments)


def test_a_job_without_a_command_says_what_there_is(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="2"):
        run(Registry, main, [])
    assert "say what to do: list, show, promote" in capsys.readouterr().err
