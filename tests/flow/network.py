"""Machines of a test: network namespaces with an address each on a bridge. Needs root and iproute2."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def allowed() -> bool:
    """Whether this process may make namespaces, bridges and pairs of interfaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    probe = f"bsr{os.getpid()}p"
    try:
        ip("netns", "add", probe)
        ip("netns", "delete", probe)
        ip("link", "add", probe, "type", "bridge")
        ip("link", "delete", probe)
    except subprocess.CalledProcessError:
        return False
    return True


class Machine:
    """A namespace with an interface `eth0` whose other end, the cable, is plugged into the bridge."""

    def __init__(self, bridge: str, number: int, subnet: str) -> None:
        self.name, self.cable, self.address = f"{bridge}-{number}", f"{bridge}v{number}", f"{subnet}.{number}"
        ip("netns", "add", self.name)
        ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self.cable, "master", bridge, "up")
        ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        for interface in ("lo", "eth0"):
            ip("-n", self.name, "link", "set", interface, "up")

    def command(self, *words: str) -> list[str]:
        """What starts a program on this machine."""
        return ["ip", "netns", "exec", self.name, *words]

    def pids(self) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        return [int(word) for word in found.stdout.split()]

    def runs(self, title: str) -> bool:
        """Whether a process of this title is there."""
        for pid in self.pids():
            with contextlib.suppress(OSError):
                if title in Path(f"/proc/{pid}/cmdline").read_text():
                    return True
        return False

    def end(self) -> None:
        """SIGKILL to every process of the machine."""
        for _ in range(100):
            if not (pids := self.pids()):
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        raise TimeoutError(f"processes {self.pids()} of {self.name} do not end")


@contextlib.contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """`count` machines at addresses .1, .2, ... and this one, outside of them, at .254; all gone afterwards."""
    bridge, subnet = f"bsr{os.getpid()}", f"198.18.{os.getpid() % 256}"
    made: list[Machine] = []
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("address", "add", f"{subnet}.254/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        made.extend(Machine(bridge, number, subnet) for number in range(1, count + 1))
        yield made
    finally:
        for machine in made:
            machine.end()
            ip("netns", "delete", machine.name)  # and the cable with it
        ip("link", "delete", bridge)
