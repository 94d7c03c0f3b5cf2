#!/usr/bin/env bash
# All checks: formatting, lint, types, and every test, in two processes. `quick` skips the slow tests. Further
# arguments go to pytest.
#
# The tests compare with torch. On Linux, pip would install the CUDA build of torch (gigabytes). To avoid that,
# set pip's variable PIP_EXTRA_INDEX_URL to the index of PyTorch's CPU builds first.
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
