"""A private Ray of a job: strangers are refused, signals end the job in order, deaths are reported in one line."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from tests.flow.training_runs import REPO, environment
from tests.helpers.fault_proxy import Fault, FaultProxy
from tests.helpers.processes import command_line, named, titled

pytestmark = pytest.mark.flow

# Of every service of Ray a call that tells or does something; without the token each must be refused.
_CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "/ray.rpc.ActorInfoGcsService/GetAllActorInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.NodeManagerService/RequestWorkerLease",
    "/ray.rpc.ObjectManagerService/Push",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/HealthCheck",
    "/ray.rpc.LogService/ListLogs",
)
# The last line of a process that got into a Ray.
_IN = "the Ray is open to me"
_CLOSED_PATHS = ("/api/jobs/", "/api/job_agent/jobs/", "/logs", "/worker/traceback", "/get_or_create_runtime_env")


@pytest.fixture
def proxy(s3: str) -> Iterator[FaultProxy]:
    """Before S3, which takes no shard of a bank while the test lasts."""
    with FaultProxy(s3, [Fault("hold", methods="PUT", path=r"kernels-\d")]) as made:
        yield made


class Job:
    """A bank whose tasks wait for S3, in a session of its own, its output in a file."""

    def __init__(self, folder: Path, proxy: FaultProxy) -> None:
        self.log, self._proxy = folder / "job.log", proxy
        command = [sys.executable, "jobs/build_kernel_bank.py", "--output", f"s3://test/{folder.name}/bank"]
        command += ["--gaussian", "10000", "--motion", "10000"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=REPO,
                env=environment(AWS_ENDPOINT_URL=proxy.url),
                start_new_session=True,
                stdout=log,
                stderr=log,
            )
        self.wait_until_at_work()
        self.below = psutil.Process(self.process.pid).children(recursive=True)

    def wait_until_at_work(self) -> None:
        deadline = time.monotonic() + 240
        while self._proxy.counts["hold"] < 2:  # one of each of two tasks
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def said(self) -> str:
        return self.log.read_text()

    def ends(self) -> int:
        """Its exit status; nothing that it started may be left."""
        try:
            status = self.process.wait(timeout=120)
        finally:
            _, left = psutil.wait_procs(self.below, timeout=20)
            for process in [*left, *([self.process] if self.process.poll() is None else [])]:
                process.kill()
        assert not left, f"{left}\n{self.said()}"
        return status


def test_a_stranger_is_refused_and_sigterm_to_all_ends_the_job_in_order(proxy: FaultProxy, tmp_path: Path):
    job = Job(tmp_path, proxy)
    try:
        ports = listening(job.process.pid)
        assert {"gcs_server", "raylet"} <= set(ports.values()), ports
        for port, name in ports.items():
            assert all(is_loopback(address) for address in addresses(job.process.pid, port)), (name, port)
            assert_refuses_calls(port, name)
            assert_refuses_requests(port, name)
        assert not titled(job.below, "_StatsActor")
        head = next(port for port, name in ports.items() if name == "gcs_server")
        token = token_of(job.below, "gcs_server")
        assert not any(token in part for process in job.below for part in command_line(process))
        guest = enter(head, tmp_path, token)
        said = ended(guest, within=180)
        assert said.splitlines()[-1:] == [_IN], f"{said}\n{job.said()}"
        # None: as Ray does by itself; empty: with authentication turned off.
        strangers = [enter(head, tmp_path, other, patience="5") for other in (None, "a" * 64, "")]
        for stranger in strangers:
            assert ended(stranger, within=60).splitlines()[-1:] != [_IN]
        assert job.process.poll() is None, job.said()
    finally:
        # What systemd sends: SIGTERM to every process of the job, Ray's too.
        for process in [*job.below, job.process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
    assert job.ends() == 130, job.said()
    assert job.said().splitlines()[-1] == "interrupted; what is finished is kept"
    assert "Traceback" not in job.said()


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_death_inside_ray_is_one_line(name: str, proxy: FaultProxy, tmp_path: Path):
    job = Job(tmp_path, proxy)
    before = job.said()
    named(job.below, name)[0].kill()
    assert job.ends() == 1, job.said()
    lines = [line for line in job.said().removeprefix(before).splitlines() if not line.startswith("kernels: ")]
    assert len(lines) == 1, job.said()
    assert lines[0].startswith("error: ")
    assert "the same command resumes" in lines[0]


def listening(root: int) -> dict[int, str]:
    """Port -> name of the process, of all TCP sockets on which a process or one below it listens."""
    return {port: name for port, _, name in listeners(root)}


def addresses(root: int, port: int) -> set[str]:
    return {address for listened, address, _ in listeners(root) if listened == port}


def listeners(root: int) -> list[tuple[int, str, str]]:
    """Port, address and process name of all TCP sockets on which a process or one below it listens."""
    found = []
    for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since it was listed
            name = process.name()
            found += [
                (connection.laddr.port, connection.laddr.ip, name)
                for connection in process.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            ]
    return found


def is_loopback(address: str) -> bool:
    return address.removeprefix("::ffff:").startswith("127.") or address == "::1"


def assert_refuses_calls(port: int, name: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        for call in _CALLS:
            with pytest.raises(grpc.RpcError) as refusal:
                channel.unary_unary(call)(b"", timeout=10)
            code = refusal.value.code()  # type: ignore[attr-defined]
            # Another service's port does not know the call; a web server does not speak gRPC.
            refused = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE
            assert code in refused, (name, port, call, code)
            if code == grpc.StatusCode.UNAVAILABLE:
                return


def assert_refuses_requests(port: int, name: str) -> None:
    for path in _CLOSED_PATHS:
        for method in ("GET", "POST"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                connection.request(method, path, body=b"{}" if method == "POST" else None)
                answer = connection.getresponse()
                content = answer.read()
            except (http.client.HTTPException, OSError):
                break  # no web server
            finally:
                connection.close()
            is_metrics = content.startswith(b"# HELP")  # a metrics server gives them for every path
            assert answer.status in (401, 403, 404, 405, 501) or is_metrics, (name, port, path, answer.status, content)


def token_of(processes: list[psutil.Process], name: str) -> str:
    """The token of a job's Ray, which only its own user can read in the environment of a process of Ray.

    What the job started before its Ray has the token that it was given itself, such as that of this process's Ray.
    """
    (process,) = named(processes, name)
    return process.environ()["RAY_AUTH_TOKEN"]


def enter(port: int, home: Path, token: str | None, *, patience: str = "60") -> subprocess.Popen[str]:
    """Start a process of another environment and home that tries to get into the Ray of a job.

    Args:
        port: of the job's `gcs_server`.
        home: home folder of the process.
        token: None leaves out every setting of authentication, an empty one turns it off.
        patience: seconds for which Ray tries again before it gives up; a busy machine needs many to answer a guest.
    """
    code = f"import ray; ray.init(address='127.0.0.1:{port}', logging_level='CRITICAL'); print({_IN!r})"
    variables = {"PATH": os.environ["PATH"], "HOME": str(home), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    variables["RAY_gcs_rpc_server_reconnect_timeout_s"] = patience
    if token is not None:
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process: subprocess.Popen[str], within: float) -> str:
    """What a process says until it ends, or until it is killed because it still tries to get in."""
    try:
        return process.communicate(timeout=within)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


def test_the_machines_own_address_is_closed(tmp_path: Path, cluster: None):
    """The session's Ray, which `connect` started too, from this machine's address on its network."""
    own = [a.address for found in psutil.net_if_addrs().values() for a in found if a.family == socket.AF_INET]
    for address in (address for address in own if not is_loopback(address)):
        for port in listening(os.getpid()):
            with socket.socket() as probe:
                probe.settimeout(5)
                assert probe.connect_ex((address, port)) != 0, (address, port)
