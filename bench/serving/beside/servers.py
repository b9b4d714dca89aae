"""Servers of others, started beside a bench and stopped with it: vLLM and llama.cpp's, which
`install.sh` beside this installs, and the model that vLLM's decision endpoint takes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

import httpx
import torch
from safetensors.torch import load_file, save_file

from app.local.servers import die_with_parent, free_port

ROOT = Path(__file__).parents[3]
STARTS_WITHIN_S = 1800.0
"""vLLM compiles the model first."""
STOPS_WITHIN_S = 20.0
SLOTS = 32
SLOT_TOKENS = 768
"""What a slot of llama.cpp holds: the longest prompt and an answer."""


class Running(NamedTuple):
    """Where a server answers, and the session that all its processes belong to."""

    url: str
    session: int

    def cpu_s(self) -> float:
        """Seconds of CPU that it has taken."""
        return sessions_cpu_s({self.session})


def sessions_cpu_s(sessions: Collection[int]) -> float:
    """Seconds of CPU of all processes of these sessions, and of their children that ended."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # It ended meanwhile.
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) in sessions:
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def started(command: list[str], port: int, log: Path, **more: str) -> Iterator[Running]:
    """A server that answers `/health`, in a session of its own, until the block ends. Raises
    `RuntimeError`, with the end of its log, where it does not start."""
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **more},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    try:
        until = monotonic() + STARTS_WITHIN_S
        while not _is_healthy(url):
            if process.poll() is not None or monotonic() > until:
                raise RuntimeError(f"{command} did not start:\n{log.read_text()[-3000:]}")
            sleep(1)
        yield Running(url, process.pid)
    finally:
        # Its engine is a child, and SIGTERM while it starts does not end it.
        _end(process)


def _is_healthy(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, seconds in ((signal.SIGTERM, STOPS_WITHIN_S), (signal.SIGKILL, STOPS_WITHIN_S)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    process.wait()


def installed_vllm(home: Path) -> Path | None:
    """The environment of vLLM under a folder of peers."""
    return home / "vllm" if (home / "vllm/bin/python").is_file() else None


@contextmanager
def vllm_server(environment: Path, model: Path, threads: int, log: Path) -> Iterator[Running]:
    """vLLM with a model as `advisor`, in float32, compiled."""
    port = free_port()
    with started(
        ["bash", "tests/policy/start_vllm.sh", str(model.absolute())],
        port,
        log,
        VLLM_ONLY="serve",
        VLLM_VENV=str(environment.absolute()),
        VLLM_PORT=str(port),
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        OMP_NUM_THREADS=str(threads),
    ) as running:
        yield running


class Llama(NamedTuple):
    """llama.cpp's server, and the model in its format, float32."""

    server: Path
    weights: Path


def installed_llama(home: Path) -> Llama | None:
    """What of llama.cpp lies under a folder of peers."""
    found = Llama(home / "llama/bin/llama-server", home / "model-f32.gguf")
    return found if all(path.is_file() for path in found) else None


@contextmanager
def llama_server(llama: Llama, threads: int, log: Path) -> Iterator[Running]:
    """llama.cpp's server with its model as `advisor`, a slot for each client."""
    port = free_port()
    options = {
        "--model": llama.weights.absolute(),
        "--alias": "advisor",
        "--host": "127.0.0.1",
        "--port": port,
        "--threads": threads,
        "--threads-batch": threads,
        "--parallel": SLOTS,
        "--ctx-size": SLOTS * SLOT_TOKENS,
        "--cache-ram": 0,  # Prompts do not come twice; what they have in common stays in a slot.
    }
    words = [str(word) for option in options.items() for word in option]
    with started([str(llama.server.absolute()), *words], port, log) as running:
        yield running


def as_decision_model(model: Path, directory: Path) -> None:
    """The weights of a Llama under the name of a Qwen3, which vLLM asks decisions of. As much to
    multiply; but a Qwen3 normalises queries and keys, so what it says is worth nothing."""
    directory.mkdir(parents=True, exist_ok=True)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    (directory / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tensors = load_file(model / "model.safetensors")
    for layer in range(config["num_hidden_layers"]):
        for name in ("q_norm", "k_norm"):
            ones = torch.ones(config["head_dim"])
            tensors[f"model.layers.{layer}.self_attn.{name}.weight"] = ones
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model / name, directory / name)
