"""Settings of the network under their former names: files, flags, variables and artefacts of then still load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from pipeline.cli import Command, parse
from pipeline.config import RunConfig
from pipeline.model_config import MOVED, KernelConfig, ModelConfig, RestorerConfig, nested
from pipeline.model_folder import read_manifest
from pipeline.shipped import shipped_folder

FLAT = {
    "scales": [2, 3],
    "unfoldings": 5,
    "widths": [4, 4, 8, 8],
    "residual_blocks": 1,
    "hyper_hidden": 8,
    "global_skip": False,
    "x0": "nearest",
    "checkpoint_activations": True,
    "compile_prior": True,
    "initial_kernel": "mean",
    "reductions": False,
    "estimator_channels": 8,
    "estimator_blocks": 2,
    "schedule": "rounds",
    "rounds": 3,
    "detach": False,
    "warm_start": True,
    "kernel_steps": 4,
}


class Train(Command, RunConfig):
    """A command around the whole tree."""

    config: Path | None = Field(None)


@pytest.fixture
def run_file(tmp_path: Path) -> str:
    """A run's YAML file of then."""
    file = tmp_path / "run.yaml"
    start = "name: a\ndata: {shards: s, bank: b}\ntrain: {steps: 5}\nmodel: "
    file.write_text(start + json.dumps({"unfoldings": 4, "kernel_steps": 3, "rounds": 1}) + "\n")
    return str(file)


def test_every_setting_has_a_place_of_its_own():
    assert set(FLAT) == {*MOVED, "scales"}
    model = ModelConfig.model_validate(FLAT)
    for name, path in MOVED.items():
        value: object = model
        for part in path.split("."):
            value = getattr(value, part)
        assert json.loads(json.dumps(value)) == FLAT[name], name


@given(st.sets(st.sampled_from(sorted(MOVED))), st.sets(st.sampled_from(sorted(MOVED))))
def test_settings_of_both_times_mix_unless_one_is_said_twice(then: set[str], now: set[str]):
    settings: dict[str, object] = {name: FLAT[name] for name in then}
    for name in now:
        *parts, last = MOVED[name].split(".")
        inner = settings
        for part in parts:
            inner = inner.setdefault(part, {})  # type: ignore[assignment]
        inner[last] = FLAT[name]
    before = json.dumps(settings)
    if then & now:
        with pytest.raises(ValueError, match="and both are given; keep the latter"):
            nested(settings)
    else:
        moved, names = nested(settings)
        assert set(names) == then
        assert nested(moved) == (moved, [])
        assert moved == nested({name: FLAT[name] for name in then | now})[0]
    assert json.dumps(settings) == before  # what was given is not changed


def test_a_file_of_then_is_read_with_one_line_and_flags_win(run_file, capfd):
    model = parse(Train, ["--config", run_file, "--model.restorer.unfoldings", "3"]).model
    assert (model.restorer.unfoldings, model.kernel.steps, model.kernel.rounds) == (3, 3, 1)
    assert capfd.readouterr().err == (
        "the config file: model.unfoldings is now model.restorer.unfoldings, "
        "model.kernel_steps is now model.kernel.steps, model.rounds is now model.kernel.rounds\n"
    )


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--model.kernel-steps=2"], "--model.kernel-steps is now --model.kernel.steps\n"),
        (["--model.kernel_steps", "2"], "--model.kernel-steps is now --model.kernel.steps\n"),
        (["--model.kernel.steps", "2"], ""),
    ],
)
def test_flags_of_then(run_file, capfd, flags: list[str], line: str):
    assert parse(Train, ["--config", run_file, *flags]).model.kernel.steps == 2
    assert capfd.readouterr().err.startswith(line)


def test_switches_and_variables_of_then(run_file, capfd, monkeypatch: pytest.MonkeyPatch):
    assert not parse(Train, ["--config", run_file, "--no-model.detach"]).model.kernel.detach
    monkeypatch.setenv("BLINDSR_MODEL__KERNEL_STEPS", "7")
    monkeypatch.setenv("BLINDSR_MODEL__ESTIMATOR_CHANNELS", "12")
    kernel = parse(Train, ["--config", run_file]).model.kernel
    assert (kernel.steps, kernel.estimator.channels) == (7, 12)
    assert "the environment: model." in capfd.readouterr().err
    assert parse(Train, ["--config", run_file, "--model.kernel.steps", "1"]).model.kernel.steps == 1


@pytest.mark.parametrize("model", ['{"kernel_steps": 1, "kernel": {"steps": 2}}', '{"kernel_steps": 1, "kernel": 5}'])
def test_one_setting_under_two_names_is_refused(tmp_path, model: str):
    file = tmp_path / "run.yaml"
    file.write_text(f"name: a\ndata: {{shards: s, bank: b}}\ntrain: {{steps: 5}}\nmodel: {model}\n")
    with pytest.raises(BadRequestError, match=r"model\.kernel_steps is now model\.kernel\.steps, "):
        parse(Train, ["--config", str(file)])


def manifest(folder: Path, **content: object) -> Path:
    folder.mkdir(parents=True)
    whole = {"sha256": {"weights.safetensors": "0" * 64}, "provenance": {}} | content
    (folder / "model.json").write_text(json.dumps(whole | {"digest": storage.digest_of(whole)}))
    return folder


def test_a_model_folder_of_then_is_read(tmp_path):
    """The digest is that of the file as it stands, so a changed one is still refused."""
    blind = manifest(tmp_path / "b", schema_version=1, kind="blind", config=FLAT, kernel_size=11)
    then = ModelConfig.model_validate(FLAT)
    plain = then.kernel.estimator.model_copy(update={"normalised": False})
    then = then.model_copy(update={"kernel": then.kernel.model_copy(update={"estimator": plain})})
    assert read_manifest(blind).config == then
    before = manifest(tmp_path / "p", schema_version=3, kind="blind", config={"kernel": {"steps": 1}}, kernel_size=11)
    assert read_manifest(before).config.kernel == KernelConfig(steps=1, prior=False)
    nested = manifest(tmp_path / "n", schema_version=2, kind="blind", config={"kernel": {"rounds": 1}}, kernel_size=11)
    assert not read_manifest(nested).config.kernel.estimator.normalised
    known = manifest(tmp_path / "u", schema_version=1, kind="usrnet", config=FLAT)
    restorer = read_manifest(known).config
    assert isinstance(restorer, RestorerConfig)
    assert restorer == ModelConfig.model_validate(FLAT).restorer
    text = (blind / "model.json").read_text()
    (blind / "model.json").write_text(text.replace('"unfoldings": 5', '"unfoldings": 4'))
    with pytest.raises(ArtefactError, match="its content is not that of its digest"):
        read_manifest(blind)


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("usrnet", ModelConfig().model_dump(mode="json"), "not that of a network of kind 'usrnet'"),
        ("blind", RestorerConfig().model_dump(mode="json"), "not that of a network of kind 'blind'"),
        ("blind", {"kernel": 7}, r"config\.kernel: Input should be"),
        ("blind", {"kernel": {"steps": 99}}, r"config\.kernel\.steps: Input should be less than or equal to 16"),
        ("usrnet", {"unfoldings": 0}, r"config\.unfoldings: Input should be greater than or equal to 1"),
        ("blind", 7, "config"),
    ],
)
def test_a_manifest_holds_the_configuration_of_its_kind(
    tmp_path, kind: str, config: object, message: str, version: int
):
    folder = manifest(tmp_path / "m", schema_version=version, kind=kind, config=config)
    with pytest.raises(ArtefactError, match=message):
        read_manifest(folder)


def test_what_ships_says_what_it_is():
    kernel = read_manifest(shipped_folder("shipped:blind-sr")).config.kernel
    assert (kernel.initial, kernel.rounds, kernel.steps) == ("spectral", 0, 6)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"model": {"kernel": {"warm_start": True}}}, r"model\.kernel\.warm_start has no effect without"),
        ({"model": {"kernel": {"reductions": True, "initial": "mean"}}}, r"kernel\.reductions has no effect without"),
        ({"model": {"kernel": {"prior": True, "steps": 4}}}, r"kernel\.prior corrects kernels of .* needs 5 of them"),
        ({"model": {"scales": [1, 2], "kernel": {"prior": True, "steps": 6}}}, r"knows the scales 2, 3 and 4 alone"),
        ({"train": {"steps": 1, "smallest_window": 32}}, r"train\.smallest_window has no effect without"),
        ({"train": {"steps": 1, "start_parts": "restorer"}}, r"start_parts has no effect without train\.start_from"),
        ({"train": {"steps": 1, "loss": {"inverse": 1.0}}}, r"train\.loss\.inverse has no effect without"),
        ({"train": {"steps": 1, "learn": "restorer", "loss": {"kernel": 1.0}}}, r"train\.loss\.kernel has no effect"),
        ({"train": {"steps": 1, "learn": "spectral", "loss": {"consistency": 1.0}}}, r"loss\.consistency has no effec"),
        ({"train": {"steps": 1, "learn": "restorer", "loss": {"image_rounds": "all"}}}, r"image_rounds has no effect"),
        ({"train": {"steps": 1, "learn": "all", "loss": {"image_rounds": "none"}}}, r"'none' has no effect without tr"),
        (
            {"train": {"steps": 1, "learn": "kernel", "loss": {"image_rounds": "none", "code": 0.0}}},
            r"'none' needs tra",
        ),
        (
            {
                "model": {"kernel": {"rounds": 0}},
                "train": {"steps": 1, "learn": "kernel", "loss": {"image_rounds": "none"}},
            },
            r"'none' has no effect without model\.kernel\.rounds",
        ),
        (
            {"train": {"steps": 1, "learn": "kernel", "loss": {"image_rounds": "none", "consistency": 1.0}}},
            r"loss\.consistency has no effect without train\.loss\.image_rounds",
        ),
    ],
)
def test_a_setting_that_the_others_make_meaningless_is_refused(part: dict, message: str):
    whole = {"name": "a", "data": {"shards": "s", "bank": "b"}, "train": {"steps": 1}}
    RunConfig.model_validate(whole)
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate(whole | part)


def test_defaults_are_the_tiny_network():
    assert ModelConfig() == ModelConfig(scales=(2,), restorer=RestorerConfig(), kernel=KernelConfig())
