"""The production backend: vLLM's `/v1/completions`, token ids in, label log-probabilities out.

`logprob_token_ids` makes vLLM return the raw log-probabilities of exactly the labels (it wants
`logprobs` beside it), `allowed_token_ids` keeps the one sampled token among them,
`return_tokens_as_token_ids` names tokens "token_id:49". The head is the same for every prompt, so
vLLM's prefix cache holds it. A prompt with a text part is asked about twice, with it and without
it: what stands before the text is in the cache as well. Questions beside the action are requests of
their own, sent together once the prompt is in the cache. Several servers are asked as one
(`app.policy.replicas`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import structlog

from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.model.actions import LABELS, Action
from app.domain.model.manifest import ModelManifest
from app.domain.model.prompt import Prompt
from app.domain.model.questions import BY_NAME, QuestionName
from app.domain.record.decision import Reading
from app.domain.scenario import Scenario
from app.policy.encoding import PromptEncoder
from app.policy.options import DEFAULTS, BackendOptions
from app.policy.rationale import RATIONALE_TOKENS, sentences
from app.policy.replicas import Replicas, odd, urls_of

_T = TypeVar("_T")
MASS_TOLERANCE = 0.05
"""Of a sum of probabilities: servers round."""
log = structlog.get_logger()


class VllmPolicy:
    """A `Policy` that asks a vLLM server.

    Parameters
    ----------
    base_url : of the server, for example "http://vllm:8000"; of several, with commas in between.
    model_name : the name under which it serves the model (`--served-model-name`, or the path it was
        given).
    manifest : the version that it serves.
    encoder : built from the same model directory.
    options : at most `max_queue` requests are under way; one more abstains with OVERLOADED at once.
    transport : of the HTTP client; None is the network.
    api_key : sent as a bearer token, for a server started with `--api-key`.

    Raises
    ------
    ModelFileError : the model's tokenizer cannot ask a question that the version answers.
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

        def client(url: str) -> httpx.AsyncClient:
            # No timeout of its own: every request runs under its deadline.
            return httpx.AsyncClient(
                base_url=url,
                headers=headers,
                transport=transport or httpx.AsyncHTTPTransport(limits=limits),
                timeout=None,
            )

        self._replicas = Replicas(urls_of(base_url), client, options.telemetry)
        self._model_name = model_name
        self._manifest = manifest
        self._encoder = encoder
        self._max_in_flight = options.max_queue
        self._in_flight = 0
        self._telemetry = options.telemetry
        self._action_labels = dict(zip(LABELS, encoder.label_ids, strict=True))
        for name in manifest.calibration.asked:
            encoder.question(name)

    @property
    def manifest(self) -> ModelManifest:
        """The version that is answering."""
        return self._manifest

    @property
    def parallel(self) -> int:
        """As many as may be under way: the server batches them."""
        return self._max_in_flight

    @property
    def health(self) -> str:
        """How it reads."""
        return self._replicas.health

    async def decide(
        self,
        prompt: Prompt,
        deadline: float,
        scenario: Scenario | None = None,
        rough: bool = False,
    ) -> Reading:
        """Read the labels; see `Policy.decide`. Abstains with BACKEND_UNAVAILABLE when the server
        cannot be reached, BACKEND_PROTOCOL when its answer is not the labels'
        log-probabilities, OVERLOADED, DEADLINE, PROMPT_TOO_LONG or SHUTTING_DOWN."""
        encoder = self._encoder
        with self._admitted():
            ids, text = await encoder.apart(
                lambda: (encoder.encode(prompt), encoder.text_tokens(prompt)), deadline
            )
            reading = await self._reading(ids, text, deadline)
        self._telemetry.labels_read(reading.label_mass)
        return reading

    async def _reading(self, ids: tuple[int, ...], text: int, deadline: float) -> Reading:
        """Everything that is asked of a prompt, first of all its action."""
        encoder = self._encoder
        whole = await self._labels(ids, self._action_labels, deadline)
        bare_ids: tuple[int, ...] | None = None
        bare: tuple[float, ...] | None = None
        if text:
            bare_ids = (*ids[: len(ids) - len(encoder.tail) - text], *encoder.tail)
            bare = await self._labels(bare_ids, self._action_labels, deadline)
        answers, bare_answers = await asyncio.gather(
            self._answers(ids, deadline), self._answers(bare_ids, deadline)
        )
        return Reading(
            log_probabilities=whole,
            without_text=bare,
            questions=answers,
            questions_without_text=bare_answers,
        )

    async def _answers(
        self, ids: tuple[int, ...] | None, deadline: float
    ) -> dict[QuestionName, tuple[float, ...]]:
        """Labels of the version's questions after head + `ids`; none of no prompt."""
        if ids is None:
            return {}
        names = self._manifest.calibration.asked
        tails = [self._encoder.question(name) for name in names]
        read = await asyncio.gather(
            *(
                self._labels(
                    (*ids, *tail.ids),
                    dict(zip(BY_NAME[name].labels, tail.label_ids, strict=True)),
                    deadline,
                )
                for name, tail in zip(names, tails, strict=True)
            )
        )
        return dict(zip(names, read, strict=True))

    async def explain(
        self, prompt: Prompt, action: Action, deadline: float, scenario: Scenario | None = None
    ) -> str | None:
        """One or two sentences through the same endpoint, greedy; None when late or when the server
        fails.

        The prompt is `PromptEncoder.encode_explanation`.
        """
        try:
            encoder = self._encoder
            ids = await encoder.apart(lambda: encoder.encode_explanation(prompt, action), deadline)
            body = {
                "model": self._model_name,
                "prompt": [*encoder.head, *ids],
                "max_tokens": RATIONALE_TOKENS,
                "temperature": 0,
            }
            with self._admitted():
                return await self._ask(
                    body, deadline, lambda answer: sentences(str(_choice(answer).get("text", "")))
                )
        except (
            PolicyAbstained
        ) as abstained:  # a rationale is an extra: the decision stands without one
            log.info("no rationale", reason=str(abstained))
            return None

    async def aclose(self) -> None:
        """Close the connections; requests from now on abstain."""
        await self._replicas.aclose()

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """One more prompt is under way. Raises `PolicyAbstained`: OVERLOADED."""
        if self._in_flight >= self._max_in_flight:
            raise PolicyAbstained(
                AbstainReason.OVERLOADED, f"{self._in_flight} prompts are under way"
            )
        self._in_flight += 1
        self._telemetry.prompts_wait(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            self._telemetry.prompts_wait(self._in_flight)

    async def _labels(
        self, ids: Sequence[int], labels: Mapping[str, int], deadline: float
    ) -> tuple[float, ...]:
        """Log-probabilities of labels, by their tokens, after head + `ids`."""
        label_ids = list(labels.values())
        body = {
            "model": self._model_name,
            "prompt": [*self._encoder.head, *ids],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "logprob_token_ids": label_ids,
            "allowed_token_ids": label_ids,
            "return_tokens_as_token_ids": True,
        }
        return await self._ask(body, deadline, lambda answer: _read(answer, labels))

    async def _ask(self, body: dict[str, Any], deadline: float, read: Callable[[Any], _T]) -> _T:
        """What `read` makes of a completion."""
        return await self._replicas.ask("/v1/completions", body, deadline, read)


def _choice(answer: Any) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise odd(f"no single choice in {answer!r}")
    return choices[0]


def _read(answer: Any, labels: Mapping[str, int]) -> tuple[float, ...]:
    """The labels' log-probabilities; exactly the labels must be there, each finite and at most
    0."""
    logprobs = _choice(answer).get("logprobs")
    positions = logprobs.get("top_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(positions, list) or len(positions) != 1 or not isinstance(positions[0], dict):
        raise odd(
            f"no top_logprobs of one token in {logprobs!r}: is the server older than"
            " logprob_token_ids?"
        )
    found = positions[0]
    wanted = {label: f"token_id:{number}" for label, number in labels.items()}
    if found.keys() != set(wanted.values()):
        missing = [label for label, name in wanted.items() if name not in found]
        extra = sorted(found.keys() - set(wanted.values()))
        raise odd(f"top_logprobs lack labels {missing} and hold other tokens {extra}")
    for label, name in wanted.items():
        value = found[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value > 1e-6:
            raise odd(f"the log-probability of label {label} is {value!r}")
    mass = math.fsum(math.exp(found[name]) for name in wanted.values())
    if mass > 1 + MASS_TOLERANCE:
        raise odd(f"the probabilities of the labels alone sum to {mass:.4g}")
    return tuple(found[name] for name in wanted.values())
