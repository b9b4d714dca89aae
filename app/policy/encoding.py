"""Prompt to token ids, by the model's own chat template.

A prompt becomes `head` (system prompt and markup up to the user's text: the same for every
scenario, so a backend caches it), the user's text, and `tail` (end of the user's turn and the
assistant's marker). Head and tail are the model's markup and may hold control tokens; the text
between comes from outside and never does.

Only `tokenizers` and `jinja2` are used, so that a backend without torch can encode.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from app.domain.actions import ACTIONS, LABELS, Action
from app.domain.errors import AbstainReason, ManifestMismatch, ModelFileError, PolicyAbstained
from app.domain.prompt import PROMPT_VERSION, SYSTEM, Prompt

PROMPT_TOKENS = 1024
_SENTINEL = "QXZUSERTEXTZXQ"
_TEMPLATE_ARGUMENTS = {"enable_thinking": False, "date_string": "1 Jan 2024"}
"""A prompt must not depend on the day, and the label must come first, not a chain of thought."""


class PromptEncoder:
    """Token ids of prompts for one model's tokenizer.

    Parameters
    ----------
    tokenizer : the model's tokenizer.
    render : the chat template: messages to text that ends with the assistant's marker; None for a
        model without one. It then reads `<bos>SYSTEM\\n\\nUSER\\nAnswer:\\n`.
    bos : text of the beginning-of-sequence token, used without a chat template.
    limit : tokens of the longest prompt, head and tail included.

    Raises
    ------
    ModelFileError : a label is not exactly one token after the tail, or the chat template is
        unusable.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        render: ChatTemplate | None,
        bos: str = "",
        limit: int = PROMPT_TOKENS,
    ):
        self.limit = limit
        self._markup = tokenizer
        self._plain = _without_added_tokens(tokenizer)
        self._render = render
        added = tokenizer.get_added_tokens_decoder()
        self.control_ids = frozenset(number for number, token in added.items() if token.special)
        head, tail = self._frame(bos)
        self.head = tuple(self._markup.encode(head, add_special_tokens=False).ids)
        self.tail = tuple(self._markup.encode(tail, add_special_tokens=False).ids)
        self.label_ids = tuple(self._label_id(label, tail) for label in LABELS)
        if len(set(self.label_ids)) != len(LABELS):
            raise ModelFileError(
                f"labels share tokens: {dict(zip(LABELS, self.label_ids, strict=True))}"
            )
        self._follow_ups = {action.label: self._follow_up(action) for action in ACTIONS}

    @classmethod
    def from_directory(cls, directory: Path, limit: int = PROMPT_TOKENS) -> PromptEncoder:
        """The encoder of a Hugging Face model directory; `limit` is lowered to the model's own
        number of positions."""
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ModelFileError(
                f"{directory} has no tokenizer.json: load the tokenizer with transformers and save"
                " it there with save_pretrained()"
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for any malformed file
            raise ModelFileError(f"{path} is not a tokenizer: {error}") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        settings = _read_json(directory / "tokenizer_config.json")
        positions = _read_json(directory / "config.json").get("max_position_embeddings")
        source = _chat_template(directory, settings)
        template = ChatTemplate(source, _special_tokens(settings)) if source else None
        longest = min(limit, positions) if isinstance(positions, int) else limit
        return cls(tokenizer, template, _special_tokens(settings).get("bos_token", ""), longest)

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Ids after the head: the user's text and the tail.

        Raises
        ------
        PolicyAbstained : the whole prompt is longer than `limit`; nothing is ever cut.
        ManifestMismatch : the prompt is of another version, so the head does not fit.
        """
        return self._bounded((*self._user_ids(prompt), *self.tail))

    def encode_explanation(self, prompt: Prompt, action: Action) -> tuple[int, ...]:
        """Ids after the head that ask for a rationale: the user's text, the label as the
        assistant's answer, and a second question, which puts the action in words and asks for one
        short sentence. Raises as `encode` does."""
        return self._bounded((*self._user_ids(prompt), *self._follow_ups[action.label]))

    def spans(self, prompt: Prompt) -> list[tuple[int, int]]:
        """First and past-the-end character, in the user's text, of every token that `encode` puts
        before the tail."""
        encoding = self._plain.encode(prompt.user, add_special_tokens=False)
        found = zip(encoding.ids, encoding.offsets, strict=True)
        return [
            (int(start), int(end))
            for number, (start, end) in found
            if number not in self.control_ids
        ]

    def decode(self, ids: list[int]) -> str:
        """Text of generated ids, without control tokens."""
        return str(self._markup.decode(ids, skip_special_tokens=True))

    def _bounded(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        length = len(self.head) + len(ids)
        if length > self.limit:
            raise PolicyAbstained(
                AbstainReason.PROMPT_TOO_LONG, f"{length} tokens, the limit is {self.limit}"
            )
        return ids

    def _user_ids(self, prompt: Prompt) -> list[int]:
        if (prompt.version, prompt.system) != (PROMPT_VERSION, SYSTEM):
            raise ManifestMismatch(
                f"prompt version {prompt.version} cannot be encoded here, only {PROMPT_VERSION}"
            )
        ids = self._plain.encode(prompt.user, add_special_tokens=False).ids
        return [number for number in ids if number not in self.control_ids]

    def _frame(self, bos: str) -> tuple[str, str]:
        if self._render is None:
            return f"{bos}{SYSTEM}\n\n", "\nAnswer:\n"
        return self._render.split([{"role": "user", "content": _SENTINEL}])

    def _follow_up(self, action: Action) -> list[int]:
        question = f"In one short sentence, why may it be right to {_in_words(action)}?"
        if self._render is None:
            text = f"\nAnswer:\n{action.label}\n{question}\n"
        else:
            turns = [(_SENTINEL, "user"), (action.label, "assistant"), (question, "user")]
            text = self._render.split(
                [{"role": role, "content": content} for content, role in turns]
            )[1]
        return list(self._markup.encode(text, add_special_tokens=False).ids)

    def _label_id(self, label: str, tail: str) -> int:
        ids = tuple(self._markup.encode(tail + label, add_special_tokens=False).ids)
        rest = ids[len(self.tail) :]
        if ids[: len(self.tail)] != self.tail or len(rest) != 1:
            tokens = [self._markup.id_to_token(number) for number in ids[-4:]]
            raise ModelFileError(
                f"label {label} is not exactly one token after the marker, the end reads {tokens}: "
                "this model cannot answer with one letter, choose another"
            )
        return int(rest[0])


class ChatTemplate:
    """A model's Jinja chat template, run in a sandbox, as transformers runs it but without a
    clock."""

    def __init__(self, source: str, special_tokens: dict[str, str]):
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelFileError(f"the chat template does not parse: {error}") from error
        self._arguments = {**_TEMPLATE_ARGUMENTS, **special_tokens}

    def split(self, turns: list[dict[str, str]]) -> tuple[str, str]:
        """Text before and after the user's text in a conversation that opens with our system
        prompt.

        A template that refuses a system role (Gemma's does) gets the system prompt at the top of
        the user's turn.
        """
        try:
            text = self._text([{"role": "system", "content": SYSTEM}, *turns])
        except jinja2.TemplateError:
            text = ""
        if SYSTEM not in text:
            first = {"role": "user", "content": f"{SYSTEM}\n\n{turns[0]['content']}"}
            try:
                text = self._text([first, *turns[1:]])
            except jinja2.TemplateError as error:
                raise ModelFileError(f"the chat template refuses our messages: {error}") from error
        parts = text.split(_SENTINEL)
        if len(parts) != 2:
            raise ModelFileError(
                f"the chat template writes the user's text {len(parts) - 1} times, not once"
            )
        return parts[0], parts[1]

    def _text(self, messages: list[dict[str, str]]) -> str:
        return self._template.render(
            messages=messages, add_generation_prompt=True, **self._arguments
        )


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, knowing no control token: `<|im_end|>` in a text is nine ordinary pieces
    of text."""
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(description))


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFileError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} is not a JSON object")
    return value


def _chat_template(directory: Path, settings: dict[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    value = settings.get("chat_template")
    if isinstance(value, list):
        value = {entry["name"]: entry["template"] for entry in value}.get("default")
    return value if isinstance(value, str) else None


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = settings.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[name] = text
    return tokens


def _in_words(action: Action) -> str:
    if not action.approve:
        return "reject this trade"
    return (
        f"approve this trade with {action.risk_fraction:g} of the risk and a stop of"
        f" {action.stop_atr:g} ATR"
    )
