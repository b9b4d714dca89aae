#!/usr/bin/env bash
# Runs the tests marked `spot_agent` against the Spot AI Agent's own code, in an environment of its own.
#
# usage: SPOT_AI_AGENT=/path/of/a/checkout tests/adapters/spot_ai_agent/start_spot_agent.sh
#   SPOT_AI_AGENT   a checkout of github.com/UmerVarya/Spot-Ai-Agent at 5af6208; it is copied, never changed
#   PYTHON          interpreter with this project's dev dependencies (default .venv/bin/python)
#   SPOT_VENV       where the agent's libraries are installed (default .venv-spot-agent)
#   SPOT_ONLY       install: stop after installing
set -euo pipefail
cd "$(dirname "$0")/../../.."

python=${PYTHON:-.venv/bin/python}
venv=${SPOT_VENV:-.venv-spot-agent}
[ -f "${SPOT_AI_AGENT:-}/agent.py" ] || { echo "SPOT_AI_AGENT names no checkout of the agent" >&2; exit 2; }
if [ ! -e "$venv/installed" ]; then
  "$python" -m venv "$venv"
  # The libraries that its loop imports; newer than it pins, where Python 3.11 has no wheel of those.
  "$venv/bin/pip" install --quiet "pandas<3" "numpy<2.4" python-binance ta python-dotenv requests feedparser aiohttp \
    websockets lxml beautifulsoup4 groq --editable ./client
  touch "$venv/installed"
fi
[ "${SPOT_ONLY:-}" = install ] && exit
SPOT_AI_AGENT_PYTHON=$(realpath -s "$venv/bin/python") "$python" -m pytest -m spot_agent tests/adapters/spot_ai_agent
