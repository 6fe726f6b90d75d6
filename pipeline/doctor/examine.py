"""The examination: facts from the driver and from every node, which are then judged."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kernels_bank.runtime import folders, storage, uris
from kernels_bank.runtime.cluster import connect
from kernels_bank.runtime.errors import BadRequestError, JobFailedError
from pipeline.config import RunConfig
from pipeline.doctor import judge, node
from pipeline.doctor.finding import Finding
from pipeline.tracking import health, runs

# Imports torch, which must be loaded before Ray connects: loaded later, inside a Ray job, its MKL crashed.
from pipeline.training.fit import check_cluster

_PATIENCE_S = 120  # including the start and the imports of a task's worker process
_FOLDER = ".doctor"
Result = TypeVar("Result")


def examine(config: RunConfig) -> list[Finding]:
    """Examine everything that a run of `config` depends on. Places of `config.data` are checked only if named.

    It raises no errors itself, since every problem is a finding.
    """
    findings = _ray()
    if findings[-1].status == "fail":
        return [*findings, *_tracking(config, {})]
    nodes = {_name(entry): entry for entry in ray.nodes() if entry["Alive"]}
    facts, silent = _on_all(nodes, node.facts)
    findings += silent
    nodes = {where: nodes[where] for where in facts}
    findings += judge.versions(node.facts(), facts)
    for where, of_node in facts.items():
        resources = nodes[where]["Resources"]
        findings += [
            judge.shared_memory(where, of_node, resources.get("object_store_memory", 0)),
            judge.limits(where, of_node),
            judge.disk(where, of_node),
            *judge.hidden_cards(where, of_node, resources.get("GPU", 0)),
            *_clock(where, nodes[where]),
        ]
    findings += _cards(config, nodes)
    findings += _cpus(config)
    findings += _output(config, nodes)
    findings += _data(config, nodes)
    findings += _tracking(config, nodes)
    return findings


def _ray() -> list[Finding]:
    address = os.environ.get("RAY_ADDRESS")
    where = address or "this machine"
    try:
        connect()
    except (BadRequestError, JobFailedError) as error:
        return [Finding("Ray", where, "fail", str(error), "start the cluster, or correct RAY_ADDRESS")]
    except Exception as error:  # Ray's errors: other versions, a wrong token
        found = " ".join(str(error).split())[:400]
        remedy = "use the cluster's Ray and Python, and its token: RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH"
        return [Finding("Ray", where, "fail", found, remedy)]
    total = ray.cluster_resources()
    alive = sum(entry["Alive"] for entry in ray.nodes())
    found = f"Ray {ray.__version__}: {alive} nodes, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"
    if address is None:
        found += "; RAY_ADDRESS is not set, so this is a cluster of our own"
    return [Finding("Ray", where, "ok", found)]


def _name(entry: Mapping[str, Any]) -> str:
    return f"{entry['NodeManagerAddress']} ({entry['NodeID'][:6]})"


def _submit(entry: Mapping[str, Any], task: Callable[..., Any], *arguments: object, **options: float) -> Any:  # noqa: ANN401 - a reference
    """Start a task on a given node; by default it needs no resources, so that it runs next to other work."""
    here = NodeAffinitySchedulingStrategy(entry["NodeID"], soft=False)
    options = {"num_cpus": 0, "max_retries": 0} | options
    return ray.remote(task).options(scheduling_strategy=here, **options).remote(*arguments)


def _on_all(
    nodes: Mapping[str, Mapping[str, Any]], task: Callable[..., Result], *arguments: object
) -> tuple[dict[str, Result], list[Finding]]:
    """Return the task's results by node, and findings for nodes where it failed or timed out."""
    references = {where: _submit(entry, task, *arguments) for where, entry in nodes.items()}
    results, findings = {}, []
    deadline = time.monotonic() + _PATIENCE_S
    for where, reference in references.items():
        try:
            results[where] = ray.get(reference, timeout=max(1.0, deadline - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            found = f"no answer to {task.__name__} within {_PATIENCE_S} s"
            findings.append(Finding("node", where, "fail", found, "look at the node in the dashboard, or remove it"))
        except Exception as error:  # any error of the task or Ray
            cause = getattr(error, "cause", None) or error
            found = f"{task.__name__}: {' '.join(str(cause).split())[:300] or type(cause).__name__}"
            remedy = "submit with `--working-dir .`, and use one image" if "No module" in found else _remedy(task)
            findings.append(Finding(_check(task), where, "fail", found, remedy))
    return results, findings


def _check(task: Callable[..., Any]) -> str:
    return {"probe_storage": "storage", "can_read": "data", "healthy": "MLflow", "cuda_device": "GPUs"}.get(
        task.__name__, "node"
    )


def _remedy(task: Callable[..., Any]) -> str:
    if task in (node.probe_storage, node.can_read):
        return "give this node the AWS variables, or mount the folder there"
    return "look at the log of the task in the dashboard"


def _clock(where: str, entry: Mapping[str, Any]) -> list[Finding]:
    """Compare the node's clock with ours, to within half the shortest of several round trips."""
    best: tuple[float, float] | None = None
    for _ in range(3):
        sent = time.time()
        try:
            theirs = ray.get(_submit(entry, node.clock), timeout=_PATIENCE_S)
        except Exception:
            return []  # a node that does not answer is already a finding
        received = time.time()
        half = (received - sent) / 2
        if best is None or half < best[1]:
            best = (theirs - sent - half, half)
    assert best is not None
    return [judge.clock_skew(where, *best)]


def _cards(config: RunConfig, nodes: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Check that there are enough GPUs, and that torch works on one GPU of each node with GPUs."""
    needed = config.train.fewest_workers if config.train.gpu else 0
    findings = judge.enough_cards(needed, ray.cluster_resources().get("GPU", 0))
    for where, entry in nodes.items():
        if entry["Resources"].get("GPU", 0) < 1:
            continue
        try:
            device = ray.get(_submit(entry, node.cuda_device, num_gpus=1), timeout=_PATIENCE_S)
            findings.append(Finding("GPUs", where, "ok", f"torch computes on {device}"))
        except ray.exceptions.GetTimeoutError:
            findings.append(
                Finding("GPUs", where, "warn", "all are in use: not tried", "run this again when one is free")
            )
        except Exception as error:
            found = " ".join(str(getattr(error, "cause", None) or error).split())[:300]
            remedy = "use the image built with DEVICE=cuda; compare its CUDA with the node's driver (nvidia-smi)"
            findings.append(Finding("GPUs", where, "fail", found, remedy))
    return findings


def _cpus(config: RunConfig) -> list[Finding]:
    try:
        left = check_cluster(config)
    except BadRequestError as error:
        return [Finding("CPUs", "cluster", "fail", str(error), "add nodes, or lower what the message names")]
    return [Finding("CPUs", "cluster", "ok", f"{left:g} are left for data when all workers run")]


def _output(config: RunConfig, nodes: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Write and read in the run's output from every node; all must see the same place."""
    place = uris.absolute(config.output)
    folder = uris.join(place, f"{_FOLDER}-{uuid.uuid4().hex[:12]}")
    try:
        here = node.probe_storage(folder)
    except Exception as error:  # OSError, ArtefactError, errors of a store's SDK
        found = " ".join(str(error).split())[:300]
        return [Finding("storage", place, "fail", found, "correct --output, the AWS variables, or the permissions")]
    speeds, findings = _on_all(nodes, node.probe_storage, folder)
    seen = {name for name, _ in folders.list_files(folder)}
    findings += [judge.storage_speed(f"{place} from here", here)]
    findings += [judge.storage_speed(f"{place} from {where}", speed) for where, speed in speeds.items()]
    findings.append(judge.shared_storage(place, {where: speed.token for where, speed in speeds.items()}, seen))
    folders.remove_folder(folder)
    return findings


def _data(config: RunConfig, nodes: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Check shards and bank if they are named: complete here, and the same manifest on every node."""
    findings = []
    for name, uri in (*(("shards", one.uri) for one in config.data.shard_sets), ("bank", config.data.bank)):
        if not uri:
            continue
        manifest = uris.join(uris.absolute(uri), "manifest.json")
        try:
            described = _describe(name, uri)
            digest = storage.sha256_of(manifest)
        except (BadRequestError, OSError) as error:
            findings.append(Finding(name, uri, "fail", " ".join(str(error).split()), "make it, or correct the URI"))
            continue
        seen, silent = _on_all(nodes, node.can_read, manifest, digest)
        findings += silent
        for where in [where for where, same in seen.items() if not same]:
            remedy = "use s3://, or a file system mounted on every node"
            findings.append(Finding(name, where, "fail", f"does not see {manifest}, or another one", remedy))
        if all(seen.values()) and not silent:
            findings.append(Finding(name, uri, "ok", f"{described}; seen by {len(seen)} nodes"))
    return findings


def _describe(name: str, uri: str) -> str:
    if name == "shards":
        from pipeline.data.manifest import read_manifest

        shards = read_manifest(uri)
        return f"{shards.samples} tiles in {len(shards.train)} shards"
    from kernels_bank import KernelBank

    return f"{len(KernelBank.open(uri)):,} kernels"


def _tracking(config: RunConfig, nodes: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Check the store from here in every detail, and from the nodes that it answers."""
    try:
        uri = runs.tracking_uri(config.output)
        shown = runs.RunRef("", uri).shown
        findings = [Finding("MLflow", shown, "ok", health.check_store(uri))]
    except BadRequestError as error:
        return [Finding("MLflow", "here", "fail", str(error), "see docs/operations.md")]
    if uri.startswith("http"):
        answers, silent = _on_all(nodes, health.healthy, uri)
        deaf = [where for where, answered in answers.items() if not answered]
        found, remedy = f"{shown} does not answer there", "open the port to the nodes; 127.0.0.1 is each node's own"
        findings += silent + [Finding("MLflow", where, "fail", found, remedy) for where in deaf]
    elif len({entry["NodeManagerAddress"] for entry in nodes.values()} | {_own_address()}) > 1:
        found, remedy = (
            "an SQLite file, which other machines cannot share",
            "start `mlflow server`, set MLFLOW_TRACKING_URI",
        )
        findings.append(Finding("MLflow", "cluster", "fail", found, remedy))
    return findings


def _own_address() -> str:
    return ray.util.get_node_ip_address() if ray.is_initialized() else socket.gethostname()
