#!/usr/bin/env bash
# All checks: formatting, lint, types, and every test, in two processes. `quick` leaves out the tests that take
# long. Further arguments go to pytest.
#
# The tests compare with torch. Where pip would take its build with CUDA (gigabytes, on Linux), point pip at
# the index of PyTorch's CPU builds first, in its own variable PIP_EXTRA_INDEX_URL.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
environment '[test]'

cd "$repo"
if [ "${1:-}" = quick ]; then
  shift
  set -- -m "not slow and not smollm2" "$@"
fi
ruff check
ruff format --check
mypy
python -m pytest -rs --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations=10 "$@"
