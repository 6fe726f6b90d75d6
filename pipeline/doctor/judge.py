"""From facts to findings: pure functions, with the limits and the remedies in one place."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.doctor.finding import Finding
from pipeline.doctor.node import Facts, StorageSpeed

# Ray and Python must be the same for any communication; results depend on the others.
_ESSENTIAL = ("python", "ray")
_GIB, _MIB = 2**30, 2**20


def versions(driver: Facts, nodes: Mapping[str, Facts]) -> list[Finding]:
    """Compare every node with the driver."""
    remedy = "use one image on all nodes, or install with `-c constraints.txt` everywhere"
    findings = []
    for where, node in nodes.items():
        other = {name: node.versions[name] for name in driver.versions if node.versions[name] != driver.versions[name]}
        if other:
            essential = "missing" in other.values() or any(name in other for name in _ESSENTIAL)
            listed = ", ".join(f"{name} {theirs} (here {driver.versions[name]})" for name, theirs in other.items())
            findings.append(Finding("versions", where, "fail" if essential else "warn", listed, remedy))
    if findings:
        return findings
    same = ", ".join(f"{name} {driver.versions[name]}" for name in ("python", "ray", "torch", "mlflow"))
    return [Finding("versions", f"{len(nodes)} nodes", "ok", f"equal: {same}")]


def clock_skew(where: str, offset_s: float, within_s: float) -> Finding:
    """Judge `offset_s`, the node's clock minus ours, known to `within_s`. S3 refuses requests 15 minutes off."""
    found = f"{offset_s:+.2f} s (within {within_s:.2f} s)"
    off = max(0.0, abs(offset_s) - within_s)
    remedy = "run chrony or systemd-timesyncd on the node"
    if off > 300:
        return Finding("clock", where, "fail", found, remedy)
    return Finding("clock", where, "warn" if off > 2 else "ok", found, remedy if off > 2 else "")


def shared_memory(where: str, facts: Facts, store_bytes: float) -> Finding:
    """Judge /dev/shm: if it is too small, Ray puts its object store on a disk and becomes slow."""
    found = f"{facts.shm_total / _GIB:.1f} GiB for an object store of {store_bytes / _GIB:.1f} GiB"
    if facts.shm_total >= store_bytes:
        return Finding("shared memory", where, "ok", found)
    remedy = "give the container --shm-size (Docker) or a memory-backed emptyDir on /dev/shm (Kubernetes)"
    return Finding("shared memory", where, "warn", found, remedy)


def limits(where: str, facts: Facts) -> Finding:
    """Judge the limits of open files and processes. Each Ray worker has dozens of connections and threads."""
    found = f"{_count(facts.open_files)} open files, {_count(facts.max_processes)} processes"
    if facts.open_files < 4096 or facts.max_processes < 1024:
        return Finding("limits", where, "fail", found, "`ulimit -n 65536`, `ulimit -u 65536` before `ray start`")
    if facts.open_files < 65536:
        return Finding("limits", where, "warn", found, "`ulimit -n 65536` before `ray start` for large runs")
    return Finding("limits", where, "ok", found)


def disk(where: str, facts: Facts) -> Finding:
    """Judge the free disk: Ray accepts no objects on a disk that is 95% full."""
    found = f"{facts.disk_path} {1 - facts.disk_free_share:.0%} full"
    if facts.disk_free_share < 0.05:
        return Finding("disk", where, "fail", found, "free space, or start Ray with --temp-dir on another disk")
    if facts.disk_free_share < 0.1:
        return Finding("disk", where, "warn", found, "free space soon: Ray stops at 95%")
    return Finding("disk", where, "ok", found)


def hidden_cards(where: str, facts: Facts, ray_gpus: float) -> list[Finding]:
    """Find GPUs of the machine that Ray does not know."""
    if facts.nvidia_devices <= ray_gpus:
        return []
    found = f"{facts.nvidia_devices} NVIDIA devices, Ray counts {ray_gpus:g}"
    return [Finding("GPUs", where, "warn", found, "start Ray with --num-gpus; on Kubernetes ask for nvidia.com/gpu")]


def enough_cards(needed: int, available: float) -> list[Finding]:
    """Compare the number of GPUs with the run's need; a run without GPUs needs none."""
    if needed == 0:
        return []
    found = f"{available:g} of the {needed} that train.workers ask for"
    if available < needed:
        return [
            Finding("GPUs", "cluster", "fail", found, "add GPU nodes, lower train.workers, or set train.gpu: false")
        ]
    return [Finding("GPUs", "cluster", "ok", found)]


def storage_speed(where: str, speed: StorageSpeed) -> Finding:
    """Judge a storage's speed: a feed reads tens of MiB per second, a full network's checkpoint has 270 MB."""
    found = (
        f"small object {speed.latency_ms:.0f} ms, "
        f"writes {speed.write_mib_s:.0f} MiB/s, reads {speed.read_mib_s:.0f} MiB/s"
    )
    if speed.latency_ms > 1000 or min(speed.write_mib_s, speed.read_mib_s) < 5:
        return Finding("storage", where, "warn", found, "slow: use storage in the same region or a faster disk")
    return Finding("storage", where, "ok", found)


def shared_storage(folder: str, writers: Mapping[str, str], seen: set[str]) -> Finding:
    """Check that all nodes share a folder. `writers`: node -> token it wrote; `seen`: tokens that the driver sees."""
    blind = [where for where, token in writers.items() if token not in seen]
    if blind:
        found = f"what {', '.join(blind)} wrote is not seen here: a disk of its own"
        return Finding("storage", folder, "fail", found, "use s3://, or a file system mounted on every node")
    return Finding("storage", folder, "ok", f"the same from here and from {len(writers)} nodes")


def _count(limit: int) -> str:
    return "unlimited" if limit >= 2**31 else f"{limit:,}"
