#!/usr/bin/env bash
# Prove on a machine with a GPU that all works there, and how fast it is:
#
#   infra/gpu_acceptance.sh OUT [WHEELS]
#
# OUT gets report.md and report.json, whole after every check: a machine that is taken away half-way leaves what it told.
# Needed are a driver, Python >= 3.11 and a CUDA build of torch >= 2.11; no network. Of the other packages of the first
# tier (numpy, scipy, pydantic, safetensors, OpenCV) what is not there comes from the folder WHEELS into OUT/packages;
# nothing else on the machine is changed. Ray, MLflow and serving are the second tier, skipped by name where they are
# not installed. It ends within eight minutes. Without a card all that can run does, on the CPU, in
# half an hour at most. PYTHON chooses another Python than python3, ACCEPTANCE_ARGUMENTS what goes on to
# `python -m tests.cuda` (--only network, --only speed/restorations, --limit 300, --device cuda).
# Exit status: 0 something passed and nothing failed, 1 something failed, was not tried in time, or nothing passed,
# 2 a wrong request.
set -uo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  echo "error: give a folder for the report, and perhaps one with wheels: $0 OUT [WHEELS]" >&2
  exit 2
fi
wheels=${2:-}
if [ -n "$wheels" ] && [ ! -d "$wheels" ]; then
  echo "error: $wheels: no folder with wheels" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd) || exit 2
wheels=${wheels:+$(cd "$wheels" && pwd)}
cd "$(dirname "$0")/.." || exit 2

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
  echo "# Acceptance on a GPU: nothing ran. '$python' is no Python >= 3.11; set PYTHON to one." | tee "$out/report.md" >&2
  exit 2
fi
export PYTHONPATH="$out/packages${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

if [ -n "$wheels" ]; then
  # Not torch: a wheel of another CUDA than the driver's would hide the one that fits.
  absent=$("$python" -c 'from tests.cuda.machine import missing; print(*(p for p in missing(1) if not p.startswith("torch")))')
  # All in one call, else one by one: a wheel that is not there must not keep the others out.
  install=("$python" -m pip install --quiet --no-index --no-deps --find-links "$wheels" --target "$out/packages")
  # shellcheck disable=SC2086 # one word a package
  if [ -n "$absent" ] && ! "${install[@]}" $absent > "$out/install.log" 2>&1; then
    left=""
    for package in $absent; do
      "${install[@]}" "$package" >> "$out/install.log" 2>&1 || left="$left, $package"
    done
    [ -z "$left" ] || echo "not installed: ${left#, }; $out/install.log says why" >&2
  fi
fi

# The program ends by itself before. Without a card no rented minute is lost, and the machine may be busy.
limit=465
command -v nvidia-smi > /dev/null || [ -e /dev/nvidiactl ] || limit=1860
# shellcheck disable=SC2086 # several words
exec timeout --signal=TERM --kill-after=10 $limit "$python" -m tests.cuda "$out" --end-with-parent ${ACCEPTANCE_ARGUMENTS:-}
