#!/usr/bin/env bash
# Times the roads of docs/connect*.md as a newcomer walks them: seconds from `pip install` in a fresh environment, a service
# of its own and the page's code to the rows in Postgres.
#
# usage: tests/adapters/time_roads.sh
#   PYTHON   interpreter with this project's dev dependencies (default .venv/bin/python)
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-.venv/bin/python}
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
for road in the_client curl the_decorator mcp; do
  SECONDS=0
  case $road in
    curl) ;;
    mcp) "$python" -m venv "$fresh/$road" && "$fresh/$road/bin/pip" install --quiet "./client[mcp]" ;;
    *) "$python" -m venv "$fresh/$road" && "$fresh/$road/bin/pip" install --quiet ./client ;;
  esac
  CONNECT_PYTHON=$fresh/$road/bin/python "$python" -m pytest -q tests/service/client/test_connect.py -k "road_of_$road" > "$fresh/said" ||
    { cat "$fresh/said"; exit 1; }
  echo "${road#the_}: $SECONDS s from pip install to the record"
done
