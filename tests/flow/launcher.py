"""A cluster of infra/local_cluster.py under a test's control."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.servers import free_port

REPO = Path(__file__).parents[2]
NAMES = ("ray", "dashboard", "mlflow", "s3")


class Local:
    """The launcher as a user calls it, each time from another process, on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in NAMES}
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_", "MLFLOW_"))} | {
            # A killed node, whose port refuses, is dead after 2 s and not 15; a busy one still has 4 times 10 s.
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "4",
        }

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        script = [sys.executable, "infra/local_cluster.py", "--folder", str(self.folder)]
        return self.run([*script, *arguments])

    def up(self, *, cpus: int = 1) -> subprocess.CompletedProcess[str]:
        ports = [f"--{name}-port={port}" for name, port in self.ports.items()]
        return self("up", "--nodes", "3", "--cpus", str(cpus), "--store-mib", "100", *ports)

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=REPO, env=self.environment, capture_output=True, text=True, timeout=600)

    def use(self) -> None:
        lines = self("env").stdout.splitlines()
        self.environment |= dict(line.removeprefix("export ").split("=", 1) for line in lines if "=" in line)

    def marked(self) -> set[int]:
        """Processes that carry the cluster's mark, found without the launcher's help."""
        found = set()
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"BLINDSR_LOCAL_CLUSTER={self.folder}#".encode() in environ.read_bytes():
                    found.add(int(environ.parent.name))
            except OSError:
                continue
        return found
