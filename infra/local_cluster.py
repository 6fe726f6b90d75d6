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

The dashboard and the servers listen on loopback; Ray itself, which also listens on the machine's own address, asks for
a token. All files are in one folder (--folder), so several clusters can
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
from collections.abc import Callable, Iterable
from dataclasses import asdict
from getpass import getuser
from pathlib import Path

from processes import end, of_role, processes
from servers import (
    BUCKET,
    HOST,
    ClusterError,
    Settings,
    alive_nodes,
    answers,
    listens,
    read_settings,
    start_mlflow,
    start_node,
    start_s3,
    variables,
)

PATIENCE_S = 300.0
PORTS = ("ray_port", "dashboard_port", "mlflow_port", "s3_port")
# How each server is started and checked. MLflow keeps its files on S3.
SERVERS: dict[str, tuple[Callable[[Path, Settings], subprocess.Popen[bytes]], Callable[[Settings], bool]]] = {
    "s3": (start_s3, lambda settings: listens(settings.s3_port)),
    "mlflow": (start_mlflow, lambda settings: answers(settings.mlflow_port, "/health")),
}


def up(folder: Path, nodes: int, settings: Settings) -> None:
    """Start everything and wait until it answers; after any failure everything is removed."""
    refuse_odd_ports(settings)
    if processes(folder):
        raise ClusterError(f"a cluster of {folder} is up: take it down, or give another --folder and other ports")
    refuse_busy_ports(settings)
    remove_own(folder)
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    started = time.monotonic()
    try:
        write_secret(folder / "settings.json", json.dumps(asdict(settings)))
        write_secret(folder / "token", secrets.token_hex(32))
        servers = {role: start(folder, settings) for role, (start, _) in SERVERS.items()}
        join(folder, settings, [0])
        join(folder, settings, range(1, nodes))
        for role, server in servers.items():
            wait_for(folder, settings, role, server)
    except BaseException:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second signal, as from `timeout`, must not stop the clean-up
            signal.signal(number, signal.SIG_IGN)
        keep_logs(folder)
        down(folder)
        raise
    say(f"up in {time.monotonic() - started:.0f} s: a head, worker nodes: {nodes - 1}, CPUs of each: {settings.cpus}")
    say(usage(folder, settings))


def down(folder: Path) -> None:
    """End every process of the cluster, whatever shell started it, and delete its folder."""
    for _ in range(20):  # a process may start another one meanwhile
        if not (found := processes(folder)):
            break
        end(found)
    else:
        raise ClusterError(f"processes {sorted(processes(folder))} do not end; end them by hand, then run this again")
    remove_own(folder)


def remove_own(folder: Path) -> None:
    """Delete the folder of an earlier cluster. Raises ClusterError if it holds anything else."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        read_settings(folder)
    except ClusterError:
        first = sorted(path.name for path in folder.iterdir())[0]
        raise ClusterError(f"{folder} holds {first} and is no cluster's folder; nothing was touched") from None
    shutil.rmtree(folder, ignore_errors=True)


def refuse_odd_ports(settings: Settings) -> None:
    """Raise ClusterError if a port is invalid or given twice."""
    asked = {f"--{name.replace('_', '-')}": getattr(settings, name) for name in PORTS}
    if wrong := [f"{flag} {port}" for flag, port in asked.items() if not 0 < port < 65536]:
        raise ClusterError(f"{', '.join(wrong)}: a port is a number from 1 to 65535")
    ports = list(asked.values())
    if same := [f"{flag} {port}" for flag, port in asked.items() if ports.count(port) > 1]:
        raise ClusterError(f"{', '.join(same)}: each server needs a port of its own")


def refuse_busy_ports(settings: Settings) -> None:
    """Raise ClusterError, with all ports in use and their flags, if another program listens on a port."""
    busy = []
    for name in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection in TIME_WAIT is not a listener
            try:
                probe.bind(("", getattr(settings, name)))
            except OSError:
                busy.append(f"{getattr(settings, name)} (--{name.replace('_', '-')})")
    if busy:
        raise ClusterError(f"another program listens on port {', '.join(busy)}; end it, or give other ports")


def join(folder: Path, settings: Settings, numbers: Iterable[int]) -> None:
    """Start nodes in parallel and wait until all have joined the Ray cluster.

    `ray start` gives up after 30 s, which may be too short on a busy machine, and may leave processes behind. Then it
    is tried once more.

    Args:
        folder: folder of the cluster.
        settings: settings of the cluster.
        numbers: numbers of the nodes.
    """
    deadline = time.monotonic() + PATIENCE_S
    starters = {number: start_node(folder, settings, number) for number in numbers}
    while missing := starters.keys() - set(alive_nodes(folder, settings)):
        for number in sorted(missing):
            role = f"node-{number}"
            if starters[number].poll():  # the start has failed
                say(f"{role} did not start ({last_line(folder / f'{role}.log')}); once more")
                end(of_role(folder, role), gently=False)
                starters[number] = start_node(folder, settings, number)
        if time.monotonic() > deadline:
            late = ", ".join(f"node-{number}" for number in sorted(missing))
            raise ClusterError(f"{late} did not come up within {PATIENCE_S:.0f} s; is this machine overloaded?")
        time.sleep(0.3)


def usage(folder: Path, settings: Settings) -> str:
    """Return the addresses of all parts, and the commands to use them."""
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
    for role in sorted(here | {*SERVERS, "node-0"}):
        say(f"  {role:8} {'running' if role in here else 'not running'}")
    say(f"  nodes that Ray believes alive: {', '.join(map(str, alive_nodes(folder, settings))) or 'none'}")
    say(usage(folder, settings))


def kill(folder: Path, role: str) -> None:
    """Kill all processes of a node or a server at once, as when its machine loses power."""
    if not (found := of_role(folder, role)):
        raise ClusterError(f"{role} is not running; see `status`")
    end(found, gently=False)


def wait_for(folder: Path, settings: Settings, role: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers, as long as its process runs.

    The mark of the process is not used for this, since a process that has just started shows no environment yet.

    Args:
        folder: folder of the cluster.
        settings: settings of the cluster.
        role: role of the server.
        server: process of the server.
    """
    _, ready = SERVERS[role]
    deadline = time.monotonic() + PATIENCE_S
    while not ready(settings):
        if server.poll() is not None:
            raise ClusterError(f"{role} ended while starting: {last_line(folder / f'{role}.log')}")
        if time.monotonic() > deadline:
            raise ClusterError(f"{role} did not come up within {PATIENCE_S:.0f} s; is this machine overloaded?")
        time.sleep(0.3)


def last_line(log: Path) -> str:
    """Return the last non-empty line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def keep_logs(folder: Path) -> None:
    """Save the servers' output of a failed start next to the folder."""
    kept = folder.with_name(folder.name + "-failed.log")
    kept.write_text(
        "".join(f"== {log.name}\n{log.read_text(errors='replace')}" for log in sorted(folder.glob("*.log")))
    )
    say(f"the output of all processes is in {kept}")


def write_secret(file: Path, text: str) -> None:
    """Write a file that only its owner can read."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(text)


def say(text: str) -> None:
    """Print to standard error, since standard output is for `env`."""
    print(text, file=sys.stderr, flush=True)


def user_name() -> str:
    """Return the user who starts the cluster: a name, or the number of a user without a name."""
    try:
        return getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def parse() -> argparse.Namespace:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("TMPDIR", "/tmp")) / f"blindsr-{user_name()}"
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
        commands.add_parser(name, help=f"{name} a server").add_argument("server", choices=tuple(SERVERS))
    arguments = parser.parse_args()
    arguments.folder = arguments.folder.resolve()  # a link's target, else `down` would find no processes of it
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Run the command of the arguments."""
    folder: Path = arguments.folder
    if arguments.command == "up":
        if arguments.nodes < 2 or arguments.cpus < 1:
            raise ClusterError("--nodes counts the head, which takes no work: give 2 or more, and --cpus 1 or more")
        ports = {name: getattr(arguments, name) for name in PORTS}
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
            join(folder, settings, [number])
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
            start, _ = SERVERS[arguments.server]
            wait_for(folder, settings, arguments.server, start(folder, settings))
            say(f"{arguments.server} is back, with its data")
    return None


def next_number(folder: Path) -> int:
    """Return a number that no node of this cluster has used."""
    return 1 + max((int(log.stem.removeprefix("node-")) for log in folder.glob("node-*.log")), default=0)


def main() -> None:
    """Run a command; a mistake is one line and exit status 2."""
    # Handled like Ctrl-C, so that an interrupted start leaves no processes behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(parse())
    except ClusterError as error:
        say(f"error: {error}")
        sys.exit(2)
    except OSError as error:
        say(f"error: {error.filename or 'the system'}: {error.strerror or error}; give another --folder")
        sys.exit(2)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
