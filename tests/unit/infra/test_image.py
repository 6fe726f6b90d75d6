"""The image, the compose file, `ray up` and the dashboard: linted, pinned, without secrets, and true to the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

REPO = Path(__file__).parents[3]
INFRA = REPO / "infra"
DOCKERFILE = (INFRA / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())


def hadolint(file: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, "--no-color", file], capture_output=True, text=True, timeout=60)


def test_hadolint_finds_nothing(tmp_path: Path):
    done = hadolint(INFRA / "Dockerfile")
    assert done.returncode == 0, done.stdout
    worse = tmp_path / "Dockerfile"
    worse.write_text(DOCKERFILE.replace("USER 1000", "USER root"))
    assert hadolint(worse).returncode != 0


def test_the_image_copies_what_exists_and_the_context_lets_in():
    let_in = {line[1:] for line in (REPO / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, flags=re.M):
        *sources, _ = [word for word in line.split() if not word.startswith("--")]
        for source in sources:
            assert (REPO / source).exists(), source
            assert source in let_in


def test_the_final_layer_is_pinned_unprivileged_and_has_no_compiler():
    base = re.search(r"^ARG BASE=(\S+)$", DOCKERFILE, flags=re.M)
    assert base
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base[1])
    final = DOCKERFILE.split("\nFROM ")[-1]
    assert re.findall(r"^USER (\S+)$", final, flags=re.M) == ["1000"]
    assert "HEALTHCHECK" in final
    assert not re.search(r"apt-get|build-essential|gcc|pip install", final)
    assert DOCKERFILE.count("constraints.txt") >= 3
    assert re.search(r"^torch==\S+$", (REPO / "constraints.txt").read_text(), flags=re.M)


def test_python_of_the_image_is_one_that_the_project_takes():
    minor = re.search(r"python:3\.(\d+)", DOCKERFILE)
    least = re.search(r'requires-python = ">=3\.(\d+)"', (REPO / "pyproject.toml").read_text())
    assert minor
    assert least
    assert int(minor[1]) >= int(least[1])


def test_compose_pins_images_binds_to_loopback_and_names_its_variables():
    example = (INFRA / ".env.example").read_text()
    by_itself = {"COMPOSE_PROJECT_NAME"}  # compose sets it
    for variable in set(re.findall(r"\$\{(\w+)", (INFRA / "compose.yaml").read_text())) - by_itself:
        assert re.search(rf"^{variable}=", example, flags=re.M), variable
    for name, service in COMPOSE["services"].items():
        tag = service["image"].rpartition(":")[2]
        assert tag, name
        assert tag != "latest"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: {port}"
        for needed in service.get("depends_on", {}):
            assert needed in COMPOSE["services"]
        for secret in service.get("secrets", []):
            assert secret in COMPOSE["secrets"]
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"]
    assert COMPOSE["services"]["mlflow"]["build"]["dockerfile"] == "infra/Dockerfile"
    assert "--app-name=basic-auth" in COMPOSE["services"]["mlflow"]["command"]


def ray_start_flags(command: list[str]) -> set[str]:
    return {re.split("[= ]", word)[0] for word in command if word.startswith("--")}


def test_every_flag_of_ray_and_mlflow_exists():
    from mlflow.cli import server
    from ray.scripts.scripts import start

    of_ray = {option for parameter in start.params for option in parameter.opts}
    of_mlflow = {option for parameter in server.params for option in parameter.opts}
    for service in COMPOSE["services"].values():
        command = service.get("command", [])
        if command[:2] == ["ray", "start"]:
            assert ray_start_flags(command) <= of_ray
        if command[:2] == ["mlflow", "server"]:
            assert ray_start_flags(command) <= of_mlflow
    for file in (INFRA / "ray-up").glob("*.yaml"):
        for line in re.findall(r"ray start (.*)$", file.read_text(), flags=re.M):
            assert ray_start_flags(line.split()) <= of_ray
    for group in re.findall(r"rayStartParams: \{(.*)\}", (INFRA / "kuberay/base/cluster.yaml").read_text()):
        assert {f"--{name}" for name in re.findall(r"([\w-]+):", group)} <= of_ray
    deployment = next(yaml.safe_load_all((INFRA / "kuberay/base/mlflow.yaml").read_text()))
    assert ray_start_flags(deployment["spec"]["template"]["spec"]["containers"][0]["args"]) <= of_mlflow


@pytest.mark.parametrize("name", ["aws", "local"])
def test_ray_up_files_fit_rays_own_schema(name: str):
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    config = yaml.safe_load((INFRA / f"ray-up/{name}.yaml").read_text())
    jsonschema.validate(config, schema)
    assert config["provider"]["type"] == name
    if "head_node_type" in config:
        assert config["head_node_type"] in config["available_node_types"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"no_such_key": 1}, schema)


def test_the_dashboard_shows_series_that_are_exported():
    from kernels_bank.runtime import gauges
    from pipeline.training.loop import GAUGE

    ours = {f"ray_{name}" for name in (gauges.DONE, gauges.TOTAL, GAUGE)}
    sources = (Path(ray.__file__).parent / "dashboard/modules/metrics/dashboards").glob("*.py")
    rays = set(re.findall(r"ray_\w+", " ".join(path.read_text() for path in sources)))
    code = "".join(path.read_text() for path in (REPO / "pipeline/training").glob("*.py"))
    board = json.loads((INFRA / "grafana/blind-sr.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(expressions) >= 10
    for expression in expressions:
        for series in re.findall(r"ray_\w+", expression):
            assert series in ours | rays, series
        for metric in re.findall(r'metric="(\w+)"', expression):
            assert f'"{metric.removeprefix("val_")}"' in code, metric
    used = set(re.findall(r"ray_blindsr_\w+", " ".join(expressions)))
    assert used == ours


SECRET = re.compile(
    r"(?:password|passwd|secret|token|access_key|api_key)\w*[ \t]*[:=][ \t]*[\"']?(?P<value>[^\s\"'{}$<]{6,})", re.I
)
# Names of variables and files, not contents.
_HARMLESS = re.compile(r"^(/run/secrets/\w+|[A-Z_]+=?\.*|[a-z]+(_[a-z]+)*,?|~?/\S*|\(\S*|\[\S*)$")


@pytest.mark.parametrize(
    "file", sorted(path for path in INFRA.rglob("*") if path.is_file() and "__pycache__" not in path.parts), ids=str
)
def test_no_secret_is_in_a_file(file: Path):
    text = file.read_text()
    assert not re.search(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY", text)
    assert not re.search(r"://[^\s/@${}]+:[^\s/@${}.]{4,}@", text)
    if file.suffix in (".yaml", ".json", "") or file.name.startswith(".env"):
        for hit in SECRET.finditer(text):
            assert _HARMLESS.match(hit["value"]), hit[0]


def test_the_search_for_secrets_finds_one():
    hit = SECRET.search("POSTGRES_PASSWORD: hunter22x9")
    assert hit
    assert not _HARMLESS.match(hit["value"])
