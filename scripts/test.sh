#!/usr/bin/env bash
# Formatting, lint, types, and the tests, in two processes. `quick` skips the slow tests. `long` runs the tests
# that nothing else runs: what needs an environment, a server or minutes of its own. Further arguments go to pytest.
#
# The tests compare with torch. On Linux, pip would install the CUDA build of torch (gigabytes). To avoid that,
# set pip's variable PIP_EXTRA_INDEX_URL to the index of PyTorch's CPU builds first.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
environment '[test]'

cd "$repo"
chosen="not long"
case "${1:-}" in
  quick) shift && chosen="not long and not slow and not smollm2" ;;
  long) shift && chosen="long" ;;
esac
if [ "$chosen" != long ]; then
  ruff check
  ruff format --check
  # mypy takes one core for up to a minute. It runs beside the tests and is heard at their end.
  types=$(mktemp)
  mypy >"$types" 2>&1 &
  trap 'kill "$!" 2>/dev/null || true; rm -f "$types"' EXIT
fi
# Processes take whole files, in the order that tests/conftest.py gives them.
status=0
python -m pytest -rs --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations=10 -m "$chosen" "$@" ||
  status=$?
if [ "$chosen" != long ]; then
  wait "$!" || status=1
  cat "$types"
fi
exit "$status"
