#!/usr/bin/env bash
# The main job on the `builtin` model and text, in minutes on two cores: prune 25%, measure how much faster the
# smaller model is, and show the gain. The options halve the time of the `quick` preset, and at this sparsity cost
# little (docs/results.md). Further arguments go to `python -m tyr_jax.prune`. Without --output, the result is
# written to runs/demo of this repository and replaces the last demo's.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
environment

output=
for ((i = 1; i <= $#; i++)); do
  case "${!i}" in
    --output) next=$((i + 1)) && output=${!next:-} ;;
    --output=*) output=${!i#--output=} ;;
    -h | --help) exec python -m tyr_jax.prune --help ;;
  esac
done
if [ -z "$output" ]; then
  output="$repo/runs/demo"
  set -- --output "$output" --overwrite "$@"
fi

python -m tyr_jax.prune --preset quick --sparsity 0.25 --no-refit --calibration-tokens 9216 --metric-tokens 2048 \
  --levels 7 --estimate.score-tokens 512 --generations 1 --evaluation-windows 2 --prompt "The sun rises in the east and" "$@"
echo
echo "How much faster is it?"
python -m tyr_jax.benchmark builtin "$output" --prompts 128 --batches 1 --overwrite
echo
echo "Result:"
python -m tyr_jax.report "$output"
