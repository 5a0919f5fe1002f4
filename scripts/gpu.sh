#!/usr/bin/env bash
# Everything that a CUDA card can check, in one command of at most 8 minutes and without a network: tests, benchmarks
# beside TRL, the four experiments with their reports, and experiment 5 with what is left. A second call resumes.
#
#     bash scripts/gpu.sh                         # python3 and the torch that it has; results in reports/gpu/
#     PYTHON=.venv/bin/python scripts/gpu.sh      # another interpreter: 3.11 or newer, with torch
#     GPU_BUDGET=900 GPU_OUT=/tmp/gpu scripts/gpu.sh
#     GPU_DEVICE=cpu scripts/gpu.sh               # the same commands in miniature on the CPU, as a trial
#
# Nothing is installed: the package is this checkout, and what the interpreter lacks is named before anything runs.
# `benchmarks/session.py` says what the parts are and what the exit code means.
set -euo pipefail
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "$python is missing or older than 3.11: pass PYTHON=/path/to/python3.11 or newer" >&2
  exit 2
}
checkout=$(cd "$(dirname "$0")/.." && pwd)
given=$("$python" -c 'import os; print(*map(os.path.abspath, filter(None, os.getenv("PYTHONPATH", "").split(":"))), sep=":")')
export PYTHONPATH="$checkout${given:+:$given}"
exec "$python" -P -m benchmarks.session "$@"
