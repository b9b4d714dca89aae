#!/usr/bin/env bash
# Runs the tests marked `nautilus` against the real nautilus_trader: installs it in its own environment (1 GB), with the
# client of this checkout. It needs Python 3.12 or later.
#
# usage: tests/adapters/nautilus/start_nautilus.sh
#   PYTHON          interpreter with this project's dev dependencies (default .venv/bin/python)
#   NAUTILUS_BASE   Python 3.12 or later (default: the first that is on the path or among pyenv's)
#   NAUTILUS_VENV   where nautilus_trader is installed (default var/tools/nautilus)
#   NAUTILUS_ONLY   base: print the Python that would be used, or fail; install: stop after installing; bench: measure
#                   what a bar and an entry cost
set -euo pipefail
cd "$(dirname "$0")/../../.."

version=1.231.0
python=${PYTHON:-.venv/bin/python}
venv=${NAUTILUS_VENV:-var/tools/nautilus}

base() {
  local candidate candidates=(python3.12 python3.13 python3.14 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-4].*/bin/python)
  [ -z "${NAUTILUS_BASE:-}" ] || candidates=("$NAUTILUS_BASE")
  for candidate in "${candidates[@]}"; do
    # A shim of pyenv's is there also for versions that it does not let run.
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2> /dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "nautilus_trader needs Python 3.12 or later and none was found: NAUTILUS_BASE=/path/of/python" >&2
  return 2
}

if [ "${NAUTILUS_ONLY:-}" = base ]; then
  base
  exit
fi
if [ ! -e "$venv/installed-$version" ]; then
  found=$(base)
  "$found" -m venv "$venv"
  "$venv/bin/pip" install --quiet "nautilus_trader==$version" --editable ./client
  touch "$venv/installed-$version"
fi
case ${NAUTILUS_ONLY:-} in
  install) exit 0 ;;
  bench) exec "$venv/bin/python" -W ignore -m tests.adapters.nautilus.measure ;;
esac
NAUTILUS_PYTHON=$(realpath -s "$venv/bin/python") "$python" -m pytest -q -m nautilus tests/adapters/nautilus
