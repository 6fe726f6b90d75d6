"""Run any job as one command: `blind-sr restore --input PHOTO` is `python jobs/restore.py --input PHOTO`.

`python -m jobs` does the same. A name's hyphens may stand for its underscores.
"""

from __future__ import annotations

import ast
import runpy
import signal
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Run the job that the first argument names, with the arguments after it."""
    jobs = {path.stem.replace("_", "-"): path for path in sorted(HERE.glob("[a-z]*.py"))}
    name, rest = (sys.argv[1].replace("_", "-"), sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in jobs:
        sys.argv = [f"blind-sr {name}", *rest]
        try:
            runpy.run_module(f"jobs.{jobs[name].stem}", run_name="__main__", alter_sys=True)
        except KeyboardInterrupt:  # during the job's imports; later the job handles it itself
            print("interrupted", file=sys.stderr)
            sys.exit(130)
    elif name in {"--help", "-h", "help"}:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end silently in `| head -1`, like other programs
        print("usage: blind-sr JOB [arguments]      blind-sr JOB --help\n")
        for job, path in jobs.items():
            print(f"  {job:20}{_summary(path)}")
    else:
        print(f"error: blind-sr {name}: no such job; there is {', '.join(jobs)}", file=sys.stderr)
        sys.exit(2)


def _summary(path: Path) -> str:
    """Return the first line of a job's docstring, without importing the job."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
