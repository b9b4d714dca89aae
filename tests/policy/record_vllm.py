"""Writes `recordings/*.json` from a running vLLM: `python tests/policy/record_vllm.py URL
MODEL_DIRECTORY`.

Run it when the vLLM version changes, against `VLLM_ONLY=serve tests/policy/start_vllm.sh`, and
review the difference.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from app.domain.errors import PolicyAbstained
from app.domain.model.actions import ACTIONS
from app.policy.calibration import random_prompts
from app.policy.encoding import PromptEncoder
from app.policy.versions.store import load_manifest
from app.policy.vllm import VllmPolicy

RECORDINGS = Path(__file__).with_name("recordings")


class Recorder(httpx.AsyncHTTPTransport):
    """Keeps the last exchange."""

    exchange: dict[str, Any]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        await response.aread()
        self.exchange = {
            "request": json.loads(request.content),
            "status": response.status_code,
            "response": response.json(),
        }
        return response


async def record(url: str, directory: Path) -> None:
    """One exchange a file: labels, a rationale, an unknown model, and what a server says that knows
    no `logprob_token_ids` (it ignores the field, so the request goes without it)."""
    recorder = Recorder()
    version = httpx.get(f"{url}/version", trust_env=False).json()["version"]

    def write(name: str) -> None:
        document = {"server": f"vllm {version}", **recorder.exchange}
        (RECORDINGS / f"{name}.json").write_text(
            json.dumps(document, indent=1) + "\n", encoding="utf-8"
        )

    manifest, encoder = load_manifest(directory), PromptEncoder.from_directory(directory)
    policy = VllmPolicy(url, "advisor", manifest, encoder, transport=recorder)
    [prompt] = random_prompts(1, seed=11)
    await policy.decide(prompt, time.monotonic() + 60)
    write("labels")
    labels_request = dict(recorder.exchange["request"])
    await policy.explain(prompt, ACTIONS[5], time.monotonic() + 60)
    write("rationale")
    unknown = VllmPolicy(url, "another", manifest, encoder, transport=recorder)
    try:
        await unknown.decide(prompt, time.monotonic() + 60)
    except PolicyAbstained:
        write("unknown_model")
    del labels_request["logprob_token_ids"]
    async with httpx.AsyncClient(transport=recorder, base_url=url, timeout=60) as client:
        await client.post("/v1/completions", json=labels_request)
    write("without_label_ids")


if __name__ == "__main__":
    asyncio.run(record(sys.argv[1], Path(sys.argv[2])))
