"""The production backend: vLLM's `/v1/completions`, token ids in, label log-probabilities out.

`logprob_token_ids` makes vLLM return the raw log-probabilities of exactly the labels (it wants
`logprobs` beside it), `allowed_token_ids` keeps the one sampled token among them,
`return_tokens_as_token_ids` names tokens "token_id:49". The head is the same for every prompt, so
vLLM's prefix cache holds it. A prompt with a text part is asked about twice, with it and without
it: what stands before the text is in the cache as well.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

import httpx
import structlog

from app.domain.actions import LABELS, Action
from app.domain.decision import Reading
from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.manifest import ModelManifest
from app.domain.prompt import Prompt
from app.policy.encoding import PromptEncoder
from app.policy.options import DEFAULTS, BackendOptions
from app.policy.rationale import RATIONALE_TOKENS, sentences

_DETAIL_CHARACTERS = 300
log = structlog.get_logger()


class VllmPolicy:
    """A `Policy` that asks a vLLM server.

    Parameters
    ----------
    base_url : of the server, for example "http://vllm:8000".
    model_name : the name under which it serves the model (`--served-model-name`, or the path it was
        given).
    manifest : the version that it serves.
    encoder : built from the same model directory.
    options : at most `max_queue` requests are under way; one more abstains with OVERLOADED at once.
    transport : of the HTTP client; None is the network.
    api_key : sent as a bearer token, for a server started with `--api-key`.
    """

    def __init__(
        self,
        base_url: str,
        model_name: str,
        manifest: ModelManifest,
        encoder: PromptEncoder,
        options: BackendOptions = DEFAULTS,
        *,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(
            max_connections=options.max_queue, max_keepalive_connections=options.max_queue
        )
        transport = transport or httpx.AsyncHTTPTransport(limits=limits)
        # No timeout of its own: every request runs under its deadline.
        self._client = httpx.AsyncClient(
            base_url=base_url, headers=headers, transport=transport, timeout=None
        )
        self._model_name = model_name
        self._manifest = manifest
        self._encoder = encoder
        self._max_in_flight = options.max_queue
        self._in_flight = 0
        self._telemetry = options.telemetry
        self._closed = False

    @property
    def manifest(self) -> ModelManifest:
        """The version that is answering."""
        return self._manifest

    @property
    def parallel(self) -> int:
        """As many as may be under way: the server batches them."""
        return self._max_in_flight

    async def decide(self, prompt: Prompt, deadline: float) -> Reading:
        """Read the labels; see `Policy.decide`. Abstains with BACKEND_UNAVAILABLE when the server
        cannot be reached, BACKEND_PROTOCOL when its answer is not the labels'
        log-probabilities, OVERLOADED, DEADLINE, PROMPT_TOO_LONG or SHUTTING_DOWN."""
        encoder = self._encoder
        ids, text = encoder.encode(prompt), encoder.text_tokens(prompt)
        whole = await self._labels(ids, deadline)
        bare = None
        if text:
            before = ids[: len(ids) - len(encoder.tail) - text]
            bare = await self._labels((*before, *encoder.tail), deadline)
        reading = Reading(log_probabilities=whole, without_text=bare)
        self._telemetry.labels_read(reading.label_mass)
        return reading

    async def explain(self, prompt: Prompt, action: Action, deadline: float) -> str | None:
        """One or two sentences through the same endpoint, greedy; None when late or when the server
        fails.

        The prompt is `PromptEncoder.encode_explanation`.
        """
        try:
            body = {
                "model": self._model_name,
                "prompt": [*self._encoder.head, *self._encoder.encode_explanation(prompt, action)],
                "max_tokens": RATIONALE_TOKENS,
                "temperature": 0,
            }
            return sentences(
                str(self._choice(await self._complete(body, deadline)).get("text", ""))
            )
        except (
            PolicyAbstained
        ) as abstained:  # a rationale is an extra: the decision stands without one
            log.info("no rationale", reason=str(abstained))
            return None

    async def aclose(self) -> None:
        """Close the connections; requests from now on abstain."""
        self._closed = True
        await self._client.aclose()

    async def _labels(self, ids: Sequence[int], deadline: float) -> tuple[float, ...]:
        """The labels after head + `ids`."""
        labels = list(self._encoder.label_ids)
        body = {
            "model": self._model_name,
            "prompt": [*self._encoder.head, *ids],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "logprob_token_ids": labels,
            "allowed_token_ids": labels,
            "return_tokens_as_token_ids": True,
        }
        return self._read(await self._complete(body, deadline))

    async def _complete(self, body: dict[str, Any], deadline: float) -> Any:
        """POST `body` and return the parsed answer, whatever JSON it is."""
        if self._closed:
            raise PolicyAbstained(AbstainReason.SHUTTING_DOWN)
        if self._in_flight >= self._max_in_flight:
            raise PolicyAbstained(
                AbstainReason.OVERLOADED, f"{self._in_flight} requests are under way"
            )
        self._in_flight += 1
        self._telemetry.prompts_wait(self._in_flight)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                response = await self._client.post("/v1/completions", json=body)
        except TimeoutError:
            raise PolicyAbstained(AbstainReason.DEADLINE) from None
        except httpx.RequestError as error:
            if self._closed:
                raise PolicyAbstained(AbstainReason.SHUTTING_DOWN) from error
            detail = f"{self._client.base_url}: {type(error).__name__}: {error}"
            raise PolicyAbstained(
                AbstainReason.BACKEND_UNAVAILABLE, detail[:_DETAIL_CHARACTERS]
            ) from error
        finally:
            self._in_flight -= 1
            self._telemetry.prompts_wait(self._in_flight)
        if response.status_code != httpx.codes.OK:
            raise _odd(f"HTTP {response.status_code}: {response.text}")
        try:
            return response.json()
        except ValueError as error:
            raise _odd(f"not JSON: {response.text}") from error

    def _choice(self, answer: Any) -> dict[str, Any]:
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise _odd(f"no single choice in {answer!r}")
        return choices[0]

    def _read(self, answer: Any) -> tuple[float, ...]:
        """The labels' log-probabilities; exactly the labels must be there, each finite and at
        most 0."""
        logprobs = self._choice(answer).get("logprobs")
        positions = logprobs.get("top_logprobs") if isinstance(logprobs, dict) else None
        if (
            not isinstance(positions, list)
            or len(positions) != 1
            or not isinstance(positions[0], dict)
        ):
            raise _odd(
                f"no top_logprobs of one token in {logprobs!r}: is the server older than"
                " logprob_token_ids?"
            )
        found = positions[0]
        wanted = [f"token_id:{number}" for number in self._encoder.label_ids]
        if found.keys() != set(wanted):
            missing = [
                label for label, name in zip(LABELS, wanted, strict=True) if name not in found
            ]
            extra = sorted(found.keys() - set(wanted))
            raise _odd(f"top_logprobs lack labels {missing} and hold other tokens {extra}")
        values = [found[name] for name in wanted]
        for label, value in zip(LABELS, values, strict=True):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value > 1e-6:
                raise _odd(f"the log-probability of label {label} is {value!r}")
        return tuple(values)


def _odd(detail: str) -> PolicyAbstained:
    return PolicyAbstained(AbstainReason.BACKEND_PROTOCOL, detail[:_DETAIL_CHARACTERS])
