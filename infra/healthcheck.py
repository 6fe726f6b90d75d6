"""Exit status 0 when this container's part of the cluster works: for Docker's HEALTHCHECK and Kubernetes' probes.

python infra/healthcheck.py                                    the Ray node of this container
python infra/healthcheck.py http://127.0.0.1:5000/health       another server
"""

from __future__ import annotations

import re
import sys
import urllib.request
from http.client import HTTPException

# Every node's agent answers without a token whether its raylet is alive and known to the head.
RAYLET = "http://127.0.0.1:52365/api/local_raylet_healthz"


def main() -> None:
    """Check the node or server, and print the reason if it is unhealthy."""
    url = sys.argv[1] if len(sys.argv) > 1 else RAYLET
    if re.search("//[^/]*@", url):  # urllib would take it for a host's name, and say it in the container's log
        sys.exit("a URL with a login; write http://host:port/path, no login is sent")
    try:
        with urllib.request.urlopen(url, timeout=8) as answer:
            text = answer.read(200).decode(errors="replace").strip()
    except (OSError, HTTPException, ValueError) as error:  # ValueError: the argument is not a URL
        sys.exit(f"{url}: {error}")
    print(text)


if __name__ == "__main__":
    main()
