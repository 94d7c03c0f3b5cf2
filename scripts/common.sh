# Sourced by the scripts beside it: `environment EXTRAS` puts a Python with this project on the PATH.
# An active virtual environment is used; without one, `.venv` in the repository is, and is made if need be.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The first Python on the PATH that is new enough and can make virtual environments. One that a version
# manager merely names but does not run fails like any other that is too old.
find_python() {
  local candidate
  for candidate in python3 python python3.13 python3.12 python3.11 python3.14; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  echo "error: no Python from 3.11 on with its venv module is on the PATH; install one (on Debian and" \
    "Ubuntu, the packages python3 and python3-venv)" >&2
  return 1
}

# environment EXTRAS: EXTRAS as pip writes them, e.g. '[test]', or nothing.
environment() {
  local extras=${1:-} python stamp state
  if [ -z "${VIRTUAL_ENV:-}" ]; then
    if ! "$repo/.venv/bin/python" -m pip --version >/dev/null 2>&1; then
      python=$(find_python)
      echo "making the virtual environment $repo/.venv with $("$python" --version)" >&2
      "$python" -m venv --clear "$repo/.venv"
    fi
    export VIRTUAL_ENV="$repo/.venv"
  fi
  export PATH="$VIRTUAL_ENV/bin:$PATH"
  # Nothing is installed again until pyproject.toml changes; what has the extras also serves without them.
  stamp="$VIRTUAL_ENV/.tyr-jax-installed"
  state="$repo $(cksum <"$repo/pyproject.toml")"
  if [ -f "$stamp" ]; then
    case "$(cat "$stamp")" in
      "$state $extras" | "$state [test]") return ;;
    esac
  fi
  echo "installing tyr-jax$extras into $VIRTUAL_ENV (minutes, the first time)" >&2
  python -m pip install --disable-pip-version-check --quiet --editable "$repo$extras"
  printf '%s %s\n' "$state" "$extras" >"$stamp"
}
