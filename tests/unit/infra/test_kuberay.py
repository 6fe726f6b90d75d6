"""Kubernetes manifests: valid, pinned, limited, and they name only what is in this repository."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from kernels_bank.runtime.errors import BadRequestError
from pipeline.cli import Command, parse

REPO = Path(__file__).parents[3]
JOBS = sorted((REPO / "infra/kuberay/jobs").glob("*.yaml"))
# Fields of ray.io/v1 that the manifests may use.
_CLUSTER = {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions"}
_CLUSTER |= {"headGroupSpec", "workerGroupSpecs"}
_HEAD = {"rayStartParams", "template"}
_WORKERS = _HEAD | {"groupName", "replicas", "minReplicas", "maxReplicas"}
_JOB = {"clusterSelector", "entrypoint", "submissionMode", "backoffLimit", "ttlSecondsAfterFinished"}


def of_kind(objects: list[dict], kind: str) -> list[dict]:
    return [item for item in objects if item["kind"] == kind]


def cluster(objects: list[dict]) -> dict:
    (found,) = of_kind(objects, "RayCluster")
    return found


def groups(objects: list[dict]) -> list[dict]:
    spec = cluster(objects)["spec"]
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def test_core_kinds_are_valid(overlay: list[dict]):
    core = [item for item in overlay if not item["apiVersion"].startswith("ray.io/")]
    assert len(core) > 8
    for item in core:
        kubernetes_validate.validate(item, "1.31", strict=True)


def test_the_validator_refuses_what_is_wrong(overlay: list[dict]):
    wrong = of_kind(overlay, "Deployment")[0]
    wrong["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.31", strict=True)


def test_pods_of_the_cluster_are_valid_too(overlay: list[dict]):
    found = groups(overlay)
    assert len(found) >= 2  # a head and workers: an empty list would pass
    for group in found:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}} | group["template"]
        kubernetes_validate.validate(pod, "1.31", strict=True)


def test_the_cluster_has_the_shape_of_ray_io_v1(overlay: list[dict]):
    found = cluster(overlay)
    assert found["apiVersion"] == "ray.io/v1"
    assert found["spec"].keys() <= _CLUSTER
    assert found["spec"]["authOptions"] == {"mode": "token"}
    assert found["spec"]["rayVersion"] == version("ray")
    head, *workers = groups(overlay)
    assert head.keys() <= _HEAD
    assert head["rayStartParams"]["num-cpus"] == "0"
    names = [group["groupName"] for group in workers]
    assert len(set(names)) == len(names)
    for group in workers:
        assert group.keys() <= _WORKERS
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups(overlay):
        # KubeRay takes strings only.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_gpus_are_only_in_the_gpu_overlay(overlay: list[dict], all_containers):
    images = {container["image"] for container in all_containers(overlay)}
    cards = [c for c in all_containers(overlay) if "nvidia.com/gpu" in c["resources"]["limits"]]
    assert images in ({"blind-sr:0.1.0-cpu"}, {"blind-sr:0.1.0-cuda"})
    assert bool(cards) == (images == {"blind-sr:0.1.0-cuda"})


def test_every_container_is_limited_and_unprivileged(overlay: list[dict], all_containers):
    found = list(all_containers(overlay))
    assert len(found) >= 3
    for container in found:
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["readinessProbe"]["exec"]["command"][1] == "/app/infra/healthcheck.py"
    for group in groups(overlay):
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"] is True


def test_shared_memory_holds_the_object_store(overlay: list[dict]):
    for group in groups(overlay):
        store = int(group["rayStartParams"]["object-store-memory"])
        (shm,) = [v for v in group["template"]["spec"]["volumes"] if v["name"] == "shm"]
        assert shm["emptyDir"]["medium"] == "Memory"
        assert store < int(shm["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30


def test_what_is_referred_to_exists(overlay: list[dict], all_containers):
    maps = {item["metadata"]["name"] for item in of_kind(overlay, "ConfigMap")}
    described = (REPO / "infra/kuberay/base/config.yaml").read_text()
    for container in all_containers(overlay):
        for source in container["envFrom"]:
            if "configMapRef" in source:
                assert source["configMapRef"]["name"] in maps
            else:
                assert f"create secret generic {source['secretRef']['name']} " in described
    (service,) = of_kind(overlay, "Service")
    (deployment,) = of_kind(overlay, "Deployment")
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    (config,) = of_kind(overlay, "ConfigMap")
    assert config["data"]["MLFLOW_TRACKING_URI"] == f"http://{service['metadata']['name']}:5000"
    bucket = config["data"]["STORE"]
    assert f"--artifacts-destination={bucket}/mlflow" in deployment["spec"]["template"]["spec"]["containers"][0]["args"]


def test_policies_and_budgets_select_pods_that_exist(overlay: list[dict]):
    name = cluster(overlay)["metadata"]["name"]
    (deployment,) = of_kind(overlay, "Deployment")
    pods = [  # labels that KubeRay sets, and ours
        {"ray.io/cluster": name, "ray.io/node-type": "head"},
        {"ray.io/cluster": name, "ray.io/node-type": "worker"},
        deployment["spec"]["template"]["metadata"]["labels"],
    ]
    selectors = [item["spec"]["selector"] for item in of_kind(overlay, "PodDisruptionBudget")]
    policies = of_kind(overlay, "NetworkPolicy")
    selectors += [item["spec"]["podSelector"] for item in policies]
    for selector in selectors:
        labels = selector.get("matchLabels", {})
        assert any(labels.items() <= pod.items() for pod in pods), selector
    # Nothing is let in but by name.
    assert any(p["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]} for p in policies)


@pytest.mark.parametrize("file", JOBS, ids=lambda path: path.stem)
def test_a_job_is_a_command_line_that_the_job_understands(
    file: Path, overlay: list[dict], monkeypatch: pytest.MonkeyPatch
):
    job = yaml.safe_load(file.read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"].keys() <= _JOB
    assert job["spec"]["submissionMode"] in ("HTTPMode", "K8sJobMode")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster(overlay)["metadata"]["name"]}
    (config,) = of_kind(overlay, "ConfigMap")
    words = shlex.split(job["spec"]["entrypoint"].replace("$STORE", config["data"]["STORE"]))
    assert "$" not in " ".join(words)
    assert words[0] == "python"
    script, arguments = words[1], words[2:]
    understands(script, [word.replace("/app/", f"{REPO}/") for word in arguments], monkeypatch)


def test_the_acceptance_is_a_job_of_its_own_on_one_card(all_containers):
    (job,) = yaml.safe_load_all((REPO / "infra/kuberay/gpu/acceptance.yaml").read_text())
    named = job | {"metadata": {"name": "x"}}  # the validator knows no generateName
    kubernetes_validate.validate(named, "1.31", strict=True)
    (container,) = all_containers(job)
    assert container["image"] == "blind-sr:0.1.0-cuda"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert environment["ACCEPTANCE_ARGUMENTS"] == "--device cuda", "without a card it would rehearse, and succeed"
    script = re.search(r"/app/(\S+\.sh)", container["command"][-1])
    assert script
    assert (REPO / script[1]).is_file()
    assert script[1] in (REPO / "infra/Dockerfile").read_text()


def test_there_is_a_job_for_each_step():
    assert [file.stem for file in JOBS] == ["evaluate", "kernel-bank", "shards", "train"]


def understands(script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The real parser of that job takes the arguments, and a wrong one is refused."""
    path = Path(re.sub("^/app/", f"{REPO}/", script))
    assert path.is_file(), script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)  # where pydantic looks the annotations up
    spec.loader.exec_module(module)
    (command,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Command) and value.__module__ == path.stem
    ]
    parse(command, arguments)
    with pytest.raises(BadRequestError):
        parse(command, [*arguments, "--no-such-flag=1"])
