"""A real cluster on one machine: Ray nodes as processes of their own, an MLflow server and an S3 server.

    python infra/local_cluster.py up --nodes 3       a head that takes no work, as on Kubernetes, and two workers
    eval "$(python infra/local_cluster.py env)"      the variables that point a shell at it
    ray job submit --working-dir . -- python jobs/doctor.py
    python infra/local_cluster.py status
    python infra/local_cluster.py kill-node 2        as if its machine lost power; the next node replaces it
    python infra/local_cluster.py add-node
    python infra/local_cluster.py kill s3            or mlflow; the next command brings it back with its data
    python infra/local_cluster.py restart s3
    python infra/local_cluster.py down               ends every process and deletes every file

Everything listens on loopback, Ray asks for a token. All files are in one folder (--folder), so several clusters can
live side by side on other ports. MLflow uses SQLite, or the database of MLFLOW_BACKEND_STORE_URI.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from getpass import getuser
from pathlib import Path

HOST, BUCKET, PATIENCE_S = "127.0.0.1", "blindsr", 300.0
# Every process of a cluster carries it in its environment: FOLDER#ROLE. So `down` finds them from any shell.
MARK = "BLINDSR_LOCAL_CLUSTER"


class ClusterError(Exception):
    """What is wrong and what to do, in one line."""


@dataclass(frozen=True)
class Settings:
    """What `up` was asked for; kept in the folder for the commands after it."""

    cpus: int  # of each worker node
    store_mib: int  # shared memory of each node for objects
    ray_port: int
    dashboard_port: int
    mlflow_port: int
    s3_port: int
    backend: str  # database of MLflow


def up(folder: Path, nodes: int, settings: Settings) -> None:
    """Start everything and wait until it answers; on any failure nothing stays behind."""
    if processes(folder):
        raise ClusterError(f"a cluster of {folder} is up: take it down, or give another --folder and other ports")
    refuse_busy_ports(settings)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    started = time.monotonic()
    try:
        write_secret(folder / "settings.json", json.dumps(asdict(settings)))
        write_secret(folder / "token", secrets.token_hex(32))
        start_s3(folder, settings)
        start_mlflow(folder, settings)
        for number in range(nodes):
            join(folder, settings, number)
        wait_for(folder, "s3", lambda: listens(settings.s3_port))
        wait_for(folder, "mlflow", lambda: answers(settings.mlflow_port, "/health"))
    except BaseException:
        keep_logs(folder)
        down(folder)
        raise
    say(f"up in {time.monotonic() - started:.0f} s: a head and {nodes - 1} workers of {settings.cpus} CPUs")
    say(usage(folder, settings))


def down(folder: Path) -> None:
    """End every process of the cluster, from whatever shell it was started, and delete its folder."""
    for _ in range(20):  # a process may start another while the first are being ended
        if not (found := processes(folder)):
            break
        end(found)
    else:
        raise ClusterError(f"processes {sorted(processes(folder))} do not end; end them by hand, then run this again")
    shutil.rmtree(folder, ignore_errors=True)


def refuse_busy_ports(settings: Settings) -> None:
    """Raise when another program listens on one of the ports, naming all of them and the flags."""
    busy = []
    for name in ("ray_port", "dashboard_port", "mlflow_port", "s3_port"):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection in TIME_WAIT is no listener
            try:
                probe.bind(("", getattr(settings, name)))
            except OSError:
                busy.append(f"{getattr(settings, name)} (--{name.replace('_', '-')})")
    if busy:
        raise ClusterError(f"another program listens on port {', '.join(busy)}; end it, or give other ports")


def start_s3(folder: Path, settings: Settings) -> None:
    """S3 of moto, with its objects in the folder."""
    server = [sys.executable, str(Path(__file__).with_name("s3_server.py"))]
    launch(folder, "s3", [*server, "--port", str(settings.s3_port), "--folder", str(folder / "s3"), "--bucket", BUCKET])


def start_mlflow(folder: Path, settings: Settings) -> None:
    """`mlflow server` that hands artifacts through to S3, so that its clients need no S3 credentials."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(settings.mlflow_port)]
    command += ["--artifacts-destination", f"s3://{BUCKET}/mlflow", "--workers", "1"]
    # In the environment, not among the arguments, which every user of the machine can read: it may hold a password.
    launch(folder, "mlflow", command, {"MLFLOW_BACKEND_STORE_URI": settings.backend})


def join(folder: Path, settings: Settings, number: int) -> None:
    """Start a node and wait until Ray has it.

    `ray start` gives up after 30 s, which a busy machine may need, and may leave processes behind: then once more.
    """
    role, deadline = f"node-{number}", time.monotonic() + PATIENCE_S
    while True:
        starter = start_node(folder, settings, number)
        while not starter.poll():  # still starting, or well started
            if number in alive_nodes(folder, settings):
                return
            if time.monotonic() > deadline:
                raise ClusterError(f"{role} did not come up within {PATIENCE_S:.0f} s; is this machine overloaded?")
            time.sleep(0.3)
        say(f"{role} did not start ({last_line(folder / f'{role}.log')}); once more")
        end(of_role(folder, role), gently=False)


def start_node(folder: Path, settings: Settings, number: int) -> subprocess.Popen[bytes]:
    """Node 0 is the head. It takes no work; jobs' drivers run there.

    Not with `--block`: that ends a head on a busy machine for the sake of Ray's client server, which nobody needs.
    """
    command = [str(Path(sys.executable).with_name("ray")), "start", f"--node-ip-address={HOST}"]
    command += ["--min-worker-port=0", "--max-worker-port=0"]  # any free one, not one of ours
    command += ["--disable-usage-stats", f"--object-store-memory={settings.store_mib * 2**20}"]
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}"]
    if number == 0:
        command += ["--head", f"--port={settings.ray_port}", "--num-cpus=0"]
        command += [f"--dashboard-host={HOST}", f"--dashboard-port={settings.dashboard_port}"]
        command += [f"--ray-client-server-port={free_port()}"]
    else:
        command += [f"--address={HOST}:{settings.ray_port}", f"--num-cpus={settings.cpus}"]
    # A disk of its own, as on another machine: in one folder the nodes unpack a job's code over each other.
    command += [f"--temp-dir={folder / str(number)}"]
    command += [f"--resources={json.dumps({f'node-{number}': 1})}"]
    return launch(folder, f"node-{number}", command)


def launch(folder: Path, role: str, command: list[str], more: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one, with its output in the folder."""
    settings = read_settings(folder)
    environment = {k: v for k, v in os.environ.items() if k not in ("AWS_CA_BUNDLE", "RAY_ADDRESS", "AWS_PROFILE")}
    environment |= variables(folder, settings) | {
        # Jobs say `python jobs/train.py`: the python of this environment.
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "SPT_NOENV": "1",  # Ray's processes change their titles, and would write over the mark
        # Ray would give its workers the lowest priority; beside other programs they then take minutes to start.
        "RAY_worker_niceness": "0",
        MARK: f"{folder}#{role}",
    }
    del environment["RAY_ADDRESS"]  # jobs get it from Ray
    with (folder / f"{role}.log").open("ab") as log:
        return subprocess.Popen(
            command,
            env=environment | (more or {}),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def variables(folder: Path, settings: Settings) -> dict[str, str]:
    """What a shell needs to use the cluster."""
    return {
        "RAY_ADDRESS": f"{HOST}:{settings.ray_port}",
        "RAY_API_SERVER_ADDRESS": f"http://{HOST}:{settings.dashboard_port}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "MLFLOW_TRACKING_URI": f"http://{HOST}:{settings.mlflow_port}",
        "AWS_ENDPOINT_URL": f"http://{HOST}:{settings.s3_port}",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local-test-server",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def usage(folder: Path, settings: Settings) -> str:
    """Where everything is, and what to type."""
    example = f"python jobs/build_kernel_bank.py --output s3://{BUCKET}/bank --gaussian 2000 --motion 2000"
    script = f"{sys.executable} {Path(__file__).absolute()} --folder {folder}"
    return "\n".join(
        [
            f"  Ray      http://{HOST}:{settings.dashboard_port}   token in {folder / 'token'}",
            f"  MLflow   http://{HOST}:{settings.mlflow_port}",
            f"  S3       http://{HOST}:{settings.s3_port}   bucket {BUCKET}",
            "Then, in the root of the checkout:",
            f'  eval "$({script} env)"',
            f"  ray job submit --address http://{HOST}:{settings.dashboard_port} --working-dir . -- {example}",
            f"  {script} down",
        ]
    )


def status(folder: Path, settings: Settings) -> None:
    """Print every part of the cluster and whether it answers."""
    here = set(processes(folder).values())
    for role in sorted(here | {"mlflow", "s3", "node-0"}):
        say(f"  {role:8} {'running' if role in here else 'not running'}")
    say(f"  nodes that Ray believes alive: {', '.join(map(str, alive_nodes(folder, settings))) or 'none'}")
    say(usage(folder, settings))


def alive_nodes(folder: Path, settings: Settings) -> list[int]:
    """The numbers of the nodes that Ray believes alive; none while its dashboard does not answer."""
    request = urllib.request.Request(f"http://{HOST}:{settings.dashboard_port}/api/v0/nodes?detail=1")
    request.add_header("Authorization", f"Bearer {(folder / 'token').read_text()}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            found = json.load(answer)["data"]["result"]["result"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    names = [name for node in found if node["state"] == "ALIVE" for name in node["resources_total"]]
    return sorted(int(name.removeprefix("node-")) for name in names if name.startswith("node-"))


def processes(folder: Path) -> dict[int, str]:
    """Process id -> role, for all processes of the cluster.

    Those that carry the mark, and all below them, whatever they have done to their environment.
    """
    parents, roles = {}, {}
    prefix = f"{MARK}={folder}#".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            environ = (entry / "environ").read_bytes()
        except OSError:
            continue  # it has ended, or belongs to somebody else
        if state == "Z":
            continue
        pid = int(entry.name)
        parents[pid] = int(parent)
        for item in environ.split(b"\0"):
            if item.startswith(prefix):
                roles[pid] = item.removeprefix(prefix).decode()
    grew = True
    while grew:
        below = {pid: roles[up_] for pid, up_ in parents.items() if pid not in roles and up_ in roles}
        roles |= below
        grew = bool(below)
    return roles


def kill(folder: Path, role: str) -> None:
    """SIGKILL to all processes of a node or a server at once, as when its machine loses power."""
    if not (found := of_role(folder, role)):
        raise ClusterError(f"{role} is not running; see `status`")
    end(found, gently=False)


def of_role(folder: Path, role: str) -> set[int]:
    """The processes of a node or a server."""
    return {pid for pid, name in processes(folder).items() if name == role}


def end(found: Iterable[int], *, gently: bool = True) -> None:
    """SIGTERM and five seconds, then SIGKILL."""
    deadline = time.monotonic() + 5
    if gently:
        signal_all(found, signal.SIGTERM)
        while any(Path(f"/proc/{pid}").exists() for pid in found) and time.monotonic() < deadline:
            time.sleep(0.1)
    signal_all(found, signal.SIGKILL)
    while any(running(pid) for pid in found) and time.monotonic() < deadline + 30:
        time.sleep(0.05)


def signal_all(found: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for pid in found:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(folder: Path, role: str, condition: Callable[[], bool]) -> None:
    """Wait for `condition`, as long as the process that shall bring it about runs."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if role not in processes(folder).values():
            raise ClusterError(f"{role} ended while starting: {last_line(folder / f'{role}.log')}")
        if time.monotonic() > deadline:
            raise ClusterError(f"{role} did not come up within {PATIENCE_S:.0f} s; is this machine overloaded?")
        time.sleep(0.3)


def last_line(log: Path) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def keep_logs(folder: Path) -> None:
    """Save the servers' output of a start that failed beside the folder."""
    kept = folder.with_name(folder.name + "-failed.log")
    kept.write_text(
        "".join(f"== {log.name}\n{log.read_text(errors='replace')}" for log in sorted(folder.glob("*.log")))
    )
    say(f"the output of all processes is in {kept}")


def write_secret(file: Path, text: str) -> None:
    """A file that only its owner can read."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(text)


def listens(port: int) -> bool:
    """Whether something accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def answers(port: int, path: str) -> bool:
    """Whether an HTTP server says 200."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def read_settings(folder: Path) -> Settings:
    """What `up` kept. Raises ClusterError when no cluster was made there."""
    try:
        return Settings(**json.loads((folder / "settings.json").read_text()))
    except FileNotFoundError:
        raise ClusterError(f"no cluster in {folder}; start one with `up`") from None


def say(text: str) -> None:
    """To the person; standard output is for `env`."""
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("TMPDIR", "/tmp")) / f"blindsr-{getuser()}"
    parser.add_argument("--folder", type=Path, default=default, help=f"all files of the cluster (default {default})")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", help="start a cluster")
    start.add_argument("--nodes", type=int, default=3, help="with the head (default 3)")
    start.add_argument("--cpus", type=int, default=2, help="logical CPUs of each worker node (default 2)")
    start.add_argument("--store-mib", type=int, default=300, help="object store of each node, MiB (default 300)")
    for name, port in (("ray", 6379), ("dashboard", 8265), ("mlflow", 5000), ("s3", 9000)):
        start.add_argument(f"--{name}-port", type=int, default=port, help=f"default {port}")
    for name, text in (
        ("down", "end and delete everything"),
        ("status", "what runs"),
        ("env", "print the variables for a shell"),
        ("add-node", "start one more worker node"),
    ):
        commands.add_parser(name, help=text)
    commands.add_parser("kill-node", help="kill a worker node").add_argument("number", type=int)
    for name in ("kill", "restart"):
        commands.add_parser(name, help=f"{name} a server").add_argument("server", choices=("s3", "mlflow"))
    arguments = parser.parse_args()
    arguments.folder = arguments.folder.absolute()
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Do what was asked."""
    folder: Path = arguments.folder
    if arguments.command == "up":
        if arguments.nodes < 2 or arguments.cpus < 1:
            raise ClusterError("--nodes counts the head, which takes no work: give 2 or more, and --cpus 1 or more")
        ports = {name: getattr(arguments, name) for name in ("ray_port", "dashboard_port", "mlflow_port", "s3_port")}
        backend = os.environ.get("MLFLOW_BACKEND_STORE_URI") or f"sqlite:///{folder}/mlflow.db"
        return up(folder, arguments.nodes, Settings(arguments.cpus, arguments.store_mib, **ports, backend=backend))
    if arguments.command == "down":
        down(folder)
        return say(f"{folder}: no process and no file is left")
    settings = read_settings(folder)
    match arguments.command:
        case "status":
            status(folder, settings)
        case "env":
            for name, value in variables(folder, settings).items():
                print(f"export {name}={shlex.quote(value)}")
            print("unset AWS_CA_BUNDLE")
        case "add-node":
            number = next_number(folder)
            join(folder, settings, number)
            say(f"node {number} is up")
        case "kill-node":
            if arguments.number == 0:
                raise ClusterError("node 0 is the head, and without it the cluster is gone: use `down`")
            kill(folder, f"node-{arguments.number}")
            say(f"node {arguments.number} is dead")
        case "kill":
            kill(folder, arguments.server)
            say(f"{arguments.server} is dead; `restart {arguments.server}` brings it back")
        case "restart":
            end(of_role(folder, arguments.server), gently=False)
            if arguments.server == "s3":
                start_s3(folder, settings)
                wait_for(folder, "s3", lambda: listens(settings.s3_port))
            else:
                start_mlflow(folder, settings)
                wait_for(folder, "mlflow", lambda: answers(settings.mlflow_port, "/health"))
            say(f"{arguments.server} is back, with its data")
    return None


def next_number(folder: Path) -> int:
    """A number that no node of this cluster has had."""
    return 1 + max(int(log.stem.removeprefix("node-")) for log in folder.glob("node-*.log"))


def main() -> None:
    """Run a command; a mistake is one line and exit status 2."""
    try:
        run(parse())
    except ClusterError as error:
        say(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
