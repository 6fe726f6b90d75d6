"""MLflow's server answers under every name that its service has, and under no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).parents[3]


def allowed(words: list[str], variables: dict[str, str]) -> list[str]:
    """The patterns of --allowed-hosts, with variables filled in as Kubernetes and compose do."""
    (option,) = [word for word in words if word.startswith("--allowed-hosts=")]
    text = re.sub(r"\$\((\w+)\)|\$\{(\w+):-(\w+)\}", lambda m: variables.get(m[1] or m[2], m[3]), option.strip())
    return text.removeprefix("--allowed-hosts=").split(",")


def is_allowed(hosts: list[str], host: str) -> bool:
    pytest.importorskip("mlflow")
    from mlflow.server.security_utils import is_allowed_host_header

    return is_allowed_host_header(hosts, host)


def on_kubernetes(overlay: list[dict]) -> list[str]:
    (deployment,) = [item for item in overlay if item["kind"] == "Deployment"]
    (config,) = [item for item in overlay if item["kind"] == "ConfigMap"]
    return allowed(deployment["spec"]["template"]["spec"]["containers"][0]["args"], config["data"])


@pytest.mark.parametrize("port", ["", ":5000"])
def test_the_service_answers_to_its_names_on_kubernetes(overlay: list[dict], port: str):
    (service,) = [item for item in overlay if item["kind"] == "Service"]
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    for host in (name, f"{name}.{namespace}", f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local"):
        assert is_allowed(on_kubernetes(overlay), host + port), host


def test_the_service_answers_to_its_names_in_compose():
    compose = yaml.safe_load((REPO / "infra/compose.yaml").read_text())
    hosts = allowed(compose["services"]["mlflow"]["command"], {})
    project = compose["name"]
    for name in ("mlflow", f"mlflow.{project}_default", f"{project}-mlflow-1", "localhost", "127.0.0.1"):
        assert is_allowed(hosts, name), name
        assert is_allowed(hosts, f"{name}:5000"), name
    assert is_allowed(allowed(compose["services"]["mlflow"]["command"], {"MLFLOW_HOST": "ml.lab.org"}), "ml.lab.org")


def test_an_ingress_is_a_setting(overlay: list[dict]):
    (config,) = [item for item in overlay if item["kind"] == "ConfigMap"]
    assert is_allowed(on_kubernetes(overlay), config["data"]["MLFLOW_HOST"])
    assert is_allowed(on_kubernetes(overlay), config["data"]["MLFLOW_HOST"] + ":443")


@pytest.mark.parametrize(
    "host", ["evil.org", "mlflow.evil.org:5000", "mlflow.blind-sr.evil.org", "xmlflow", "mlflow.blind-sr.svc.evil.org"]
)
def test_another_name_is_refused(overlay: list[dict], host: str):
    assert not is_allowed(on_kubernetes(overlay), host)
    compose = yaml.safe_load((REPO / "infra/compose.yaml").read_text())
    assert not is_allowed(allowed(compose["services"]["mlflow"]["command"], {}), host)
