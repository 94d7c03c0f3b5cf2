# The other shell scripts source this file. `environment EXTRAS` puts a Python with this project on the PATH.
# It uses the active virtual environment. Without one it uses the repository's `.venv`, and creates it if needed.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The first Python on the PATH that is new enough and can make virtual environments. A version manager's shim
# that does not run is skipped like a Python that is too old.
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

# environment EXTRAS: EXTRAS in pip's notation, e.g. '[test]', or nothing.
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
  # Do not install again until pyproject.toml changes. An environment with the extras also serves without them.
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
