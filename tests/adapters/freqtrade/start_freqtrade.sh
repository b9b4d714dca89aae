#!/usr/bin/env bash
# Runs the tests marked `freqtrade` against the real freqtrade: installs it in its own environment (1 GB), with the
# client of this checkout.
#
# usage: tests/adapters/freqtrade/start_freqtrade.sh
#   PYTHON           interpreter with this project's dev dependencies (default .venv/bin/python)
#   FREQTRADE_VENV   where freqtrade is installed (default .venv-freqtrade)
#   FREQTRADE_ONLY   install: stop after installing; bench: measure what a candle costs
set -euo pipefail
cd "$(dirname "$0")/../../.."

version=2026.9
python=${PYTHON:-.venv/bin/python}
venv=${FREQTRADE_VENV:-.venv-freqtrade}

if [ ! -e "$venv/installed-$version" ]; then
  "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet "freqtrade==$version" --editable ./client
  touch "$venv/installed-$version"
fi
case ${FREQTRADE_ONLY:-} in
  install) exit 0 ;;
  bench) exec "$venv/bin/python" tests/adapters/freqtrade/measure.py ;;
esac
FREQTRADE_PYTHON=$(realpath -s "$venv/bin/python") "$python" -m pytest -m freqtrade tests/adapters/freqtrade
