"""MLflow's server answers under every name that its service has, and under no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).parents[3]


def listed(words: list[str], variables: dict[str, str], option: str = "--allowed-hosts") -> list[str]:
    """The patterns of an option, with variables filled in as Kubernetes and compose do."""
    (given,) = [word for word in words if word.startswith(f"{option}=")]
    text = re.sub(r"\$\((\w+)\)|\$\{(\w+):-([\w-]+)\}", lambda m: variables.get(m[1] or m[2], m[3]), given.strip())
    return text.removeprefix(f"{option}=").split(",")


def is_allowed(hosts: list[str], host: str) -> bool:
    pytest.importorskip("mlflow")
    from mlflow.server.security_utils import is_allowed_host_header

    return is_allowed_host_header(hosts, host)


def may_post(origins: list[str], origin: str) -> bool:
    pytest.importorskip("mlflow")
    from mlflow.server.security_utils import should_block_cors_request

    return not should_block_cors_request(origin, "POST", origins)


def on_kubernetes(overlay: list[dict], option: str = "--allowed-hosts") -> list[str]:
    (deployment,) = [item for item in overlay if item["kind"] == "Deployment"]
    (config,) = [item for item in overlay if item["kind"] == "ConfigMap"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    fields = {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"] for one in container["env"] if "valueFrom" in one}
    assert fields == {"NAMESPACE": "metadata.namespace"}
    return listed(container["args"], config["data"] | {"NAMESPACE": deployment["metadata"]["namespace"]}, option)


def in_compose(option: str = "--allowed-hosts", **variables: str) -> list[str]:
    compose = yaml.safe_load((REPO / "infra/compose.yaml").read_text())
    return listed(
        compose["services"]["mlflow"]["command"], {"COMPOSE_PROJECT_NAME": compose["name"]} | variables, option
    )


@pytest.mark.parametrize("port", ["", ":5000"])
def test_the_service_answers_to_its_names_on_kubernetes(overlay: list[dict], port: str):
    (service,) = [item for item in overlay if item["kind"] == "Service"]
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    for host in (name, f"{name}.{namespace}", f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local"):
        assert is_allowed(on_kubernetes(overlay), host + port), host


@pytest.mark.parametrize("namespace", ["blind-sr", "team-a"])
def test_an_overlay_may_have_another_namespace(overlay: list[dict], namespace: str):
    (deployment,) = [item for item in overlay if item["kind"] == "Deployment"]
    deployment["metadata"]["namespace"] = namespace
    assert is_allowed(on_kubernetes(overlay), f"mlflow.{namespace}.svc.cluster.local:5000")


@pytest.mark.parametrize("project", ["blind-sr", "demo"])
def test_the_service_answers_to_its_names_in_compose(project: str):
    """Of this project, or of `docker compose -p demo`."""
    hosts = in_compose(COMPOSE_PROJECT_NAME=project)
    for name in ("mlflow", f"mlflow.{project}_default", f"{project}-mlflow-1", "localhost", "127.0.0.1"):
        assert is_allowed(hosts, name), name
        assert is_allowed(hosts, f"{name}:5000"), name
    assert is_allowed(in_compose(MLFLOW_HOST="ml.lab.org"), "ml.lab.org")


def test_the_page_may_post_from_the_name_of_an_ingress_or_a_proxy(overlay: list[dict]):
    """Browsers name the page with every POST, also to the page's own server."""
    option = "--cors-allowed-origins"
    host = on_kubernetes(overlay, option)[0].removeprefix("https://")
    for origins, name in (
        (on_kubernetes(overlay, option), host),
        (in_compose(option, MLFLOW_HOST="ml.lab.org"), "ml.lab.org"),
        (in_compose(option), "localhost"),
    ):
        for origin in (f"https://{name}", f"https://{name}:8443", f"http://{name}", "http://localhost:5000"):
            assert may_post(origins, origin), origin
        for origin in ("https://evil.org", f"https://{name}.evil.org", f"https://evil.org/{name}", "null"):
            assert not may_post(origins, origin), origin


def test_an_ingress_is_a_setting(overlay: list[dict]):
    (config,) = [item for item in overlay if item["kind"] == "ConfigMap"]
    assert is_allowed(on_kubernetes(overlay), config["data"]["MLFLOW_HOST"])
    assert is_allowed(on_kubernetes(overlay), config["data"]["MLFLOW_HOST"] + ":443")


@pytest.mark.parametrize(
    "host", ["evil.org", "mlflow.evil.org:5000", "mlflow.blind-sr.evil.org", "xmlflow", "mlflow.blind-sr.svc.evil.org"]
)
def test_another_name_is_refused(overlay: list[dict], host: str):
    assert not is_allowed(on_kubernetes(overlay), host)
    assert not is_allowed(in_compose(), host)
