#!/usr/bin/env bash
# Times the roads of docs/connect*.md as a newcomer walks them: seconds from `pip install` in a fresh environment, a service
# of its own and the page's code to the rows in Postgres. Nothing that pip kept from before is used.
#
# usage: tests/adapters/time_roads.sh
#   PYTHON          interpreter with this project's dev dependencies (default .venv/bin/python)
#   ROADS           those to walk (default all)
#   NAUTILUS_BASE   Python 3.12 or later for nautilus_trader (default: looked for)
#   SPOT_AI_AGENT   a checkout of the Spot AI Agent; its road is left out without one
set -euo pipefail
cd "$(dirname "$0")/../.."

python=$(realpath -s "${PYTHON:-.venv/bin/python}")
adapters=$PWD/tests/adapters
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
export PYTHON=$python PIP_NO_CACHE_DIR=1

newcomer() { # an environment with the client and its extras
  "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet "./client$1"
}

installs() {
  case $1 in
    curl) ;;
    mcp) newcomer "[mcp]" ;;
    freqtrade) FREQTRADE_ONLY=install FREQTRADE_VENV=$venv bash "$adapters/freqtrade/start_freqtrade.sh" ;;
    nautilus_trader) NAUTILUS_ONLY=install NAUTILUS_VENV=$venv bash "$adapters/nautilus/start_nautilus.sh" ;;
    spot_ai_agent) SPOT_ONLY=install SPOT_VENV=$venv bash "$adapters/spot_ai_agent/start_spot_agent.sh" ;;
    *) newcomer "" ;;
  esac
}

walks() {
  case $1 in
    freqtrade) FREQTRADE_PYTHON=$venv/bin/python "$python" -m pytest -q "$adapters/freqtrade" -k the_road_of_the_page ;;
    nautilus_trader) NAUTILUS_PYTHON=$venv/bin/python "$python" -m pytest -q "$adapters/nautilus" -k every_entry ;;
    spot_ai_agent) SPOT_AI_AGENT_PYTHON=$venv/bin/python "$python" -m pytest -q "$adapters/spot_ai_agent" -k every_candidate ;;
    *) CONNECT_PYTHON=$venv/bin/python "$python" -m pytest -q tests/service/client/test_connect.py -k "road_of_$1 or road_of_the_$1" ;;
  esac
}

for road in ${ROADS:-client curl decorator mcp freqtrade nautilus_trader spot_ai_agent}; do
  if [ "$road" = nautilus_trader ] && ! NAUTILUS_ONLY=base bash "$adapters/nautilus/start_nautilus.sh" > /dev/null 2>&1; then
    echo "$road: left out, there is no Python 3.12 or later (NAUTILUS_BASE=/path/of/python)"
    continue
  fi
  if [ "$road" = spot_ai_agent ] && [ ! -f "${SPOT_AI_AGENT:-}/agent.py" ]; then
    echo "$road: left out, SPOT_AI_AGENT names no checkout of the agent"
    continue
  fi
  venv=$fresh/$road
  SECONDS=0
  installs "$road"
  installed=$SECONDS
  walks "$road" > "$fresh/said" || { cat "$fresh/said"; exit 1; }
  echo "$road: $SECONDS s from pip install to the record, $installed s of them installing"
  rm -rf "$venv"
done
