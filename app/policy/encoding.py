"""Prompt to token ids, by the model's own chat template.

A prompt becomes `head` (system prompt and markup up to the user's text: the same for every
scenario, so a backend caches it), the user's text, and `tail` (end of the user's turn and the
assistant's marker). Head and tail are the model's markup and may hold control tokens; the text
between comes from outside and never does.

A question beside the action (`app.domain.model.questions`) follows the tail, and has labels of its
own.

The text part is encoded by itself, so that the ids before it are those of the prompt without it,
and it is cut after `TEXT_TOKENS`: no text makes a prompt long, whatever the tokenizer spends on it.

Only `tokenizers` is used, so that a backend without torch can encode.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Encoding, Tokenizer

from app.domain.errors import AbstainReason, ManifestMismatch, ModelFileError, PolicyAbstained
from app.domain.model.actions import ACTIONS, LABELS, Action
from app.domain.model.prompt import PROMPT_VERSION, SYSTEM, TEXT_CLOSES, TEXT_OPENS, Prompt
from app.domain.model.questions import BY_NAME, QUESTIONS, QuestionName
from app.policy.versions.apart import Apart, Result
from app.policy.versions.files import MAX_TOKENIZER_BYTES, read_object, read_text, refusals
from app.policy.versions.templates import SENTINEL, ChatTemplate
from app.policy.versions.tokenizers import require_bounded, require_quick

PROMPT_TOKENS = 1024
TEXT_TOKENS = 64
"""Of all texts of a prompt together, what stands around them not counted. Two English headlines of
full length take some 50."""
os.putenv("TOKENIZERS_PARALLELISM", "false")
"""To the library: work in the thread that asks. All tokenizers share its own threads, and one that
takes long would hold them."""


class _Token(NamedTuple):
    """A token of the user's text: its id, and its first and past-the-end character there."""

    number: int
    start: int
    end: int


class QuestionTail(NamedTuple):
    """What asks a question: the ids that follow the prompt's tail, and its labels' after those."""

    ids: tuple[int, ...]
    label_ids: tuple[int, ...]


class _Frame(NamedTuple):
    """Text before and after the user's text; and for each action what comes after it when a
    rationale is asked for: the action's letter as the answer, and the question why."""

    head: str
    tail: str
    follow_ups: tuple[str, ...]

    def texts(self) -> list[str]:
        """Everything that is made token ids of it when a version is loaded."""
        asked = [(self.tail, LABELS)]
        asked += [(self.tail + question.text, question.labels) for question in QUESTIONS]
        labelled = [text + label for text, labels in asked for label in labels]
        return [self.head, *(text for text, _ in asked), *labelled, *self.follow_ups]


class PromptEncoder:
    """Token ids of prompts for one model's tokenizer.

    Its methods block for as long as the tokenizer takes: what answers requests calls them `apart`.

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
        self._apart = Apart("tokenizer")
        added = tokenizer.get_added_tokens_decoder()
        self.control_ids = frozenset(number for number, token in added.items() if token.special)
        frame = _frame(render, bos)
        self.head = self._ids(frame.head)
        self.tail = self._ids(frame.tail)
        self._tail_text = frame.tail
        self.label_ids = self._label_ids(LABELS, frame.tail, self.tail)
        self._questions: dict[QuestionName, QuestionTail] = {}
        self._follow_ups = {
            action.label: self._ids(text)
            for action, text in zip(ACTIONS, frame.follow_ups, strict=True)
        }

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
        text = read_text(path, MAX_TOKENIZER_BYTES)
        with refusals(f"{path} is not a tokenizer that"):
            require_bounded(path, json.loads(text))
        with refusals(directory):
            settings = _read_json(directory / "tokenizer_config.json")
            positions = _read_json(directory / "config.json").get("max_position_embeddings")
            source = _chat_template(directory, settings)
            template = ChatTemplate(source, _special_tokens(settings)) if source else None
            longest = min(limit, positions) if isinstance(positions, int) else limit
            bos = _special_tokens(settings).get("bos_token", "")
            require_quick(path, text, _frame(template, bos).texts())
        with refusals(f"{path} is not a tokenizer that"):
            tokenizer = Tokenizer.from_str(text)
            tokenizer.no_padding()
            tokenizer.no_truncation()
        with refusals(directory):
            encoder = cls(tokenizer, template, bos, longest)
            if longest <= len(encoder.head) + len(encoder.tail):
                raise ModelFileError(
                    f"{directory}: a prompt may have {longest} tokens here, and its frame alone has"
                    f" {len(encoder.head) + len(encoder.tail)}: choose a model of more positions,"
                    " or set ADVISOR_PROMPT_TOKENS"
                )
            return encoder

    async def apart(self, work: Callable[[], Result], deadline: float) -> Result:
        """What `work` makes of a prompt with this encoder, in a thread of its own: a tokenizer may
        take long for a text, and holds nobody who does not wait for it. Raises `PolicyAbstained`
        at the deadline, and what `work` does."""
        try:
            return await self._apart.call(work, deadline)
        except TimeoutError:
            raise PolicyAbstained(AbstainReason.DEADLINE) from None

    async def settled(self, patience_s: float) -> None:
        """Wait until nothing is done `apart`, at most so long."""
        await self._apart.settled(patience_s)

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Ids after the head: the user's text and the tail.

        Raises
        ------
        PolicyAbstained : the whole prompt is longer than `limit`; only texts from outside are cut.
            Or the tokenizer fails at it.
        ManifestMismatch : the prompt is of another version, so the head does not fit.
        """
        return self._bounded((*self._user_ids(prompt), *self.tail))

    def text_tokens(self, prompt: Prompt) -> int:
        """How many of the ids before the tail, the last ones, are of the text part. Those before
        them are the ids of the prompt without it."""
        return sum(1 for _ in self._text(prompt))

    def question(self, name: QuestionName) -> QuestionTail:
        """How a question is asked. Raises `ModelFileError` where this tokenizer cannot: a version
        that answers no question needs no token for it."""
        if name not in self._questions:
            question = BY_NAME[name]
            text = self._tail_text + question.text
            ids = self._ids(text)
            if ids[: len(self.tail)] != self.tail or len(ids) == len(self.tail):
                raise ModelFileError(
                    f"{question.text!r} joins the tokens before it: this model cannot be asked"
                    f" {name.value}"
                )
            label_ids = self._label_ids(question.labels, text, ids)
            self._questions[name] = QuestionTail(ids[len(self.tail) :], label_ids)
        return self._questions[name]

    def encode_explanation(self, prompt: Prompt, action: Action) -> tuple[int, ...]:
        """Ids after the head that ask for a rationale: the user's text, the label as the
        assistant's answer, and a second question, which puts the action in words and asks for one
        short sentence. Raises as `encode` does."""
        return self._bounded((*self._user_ids(prompt), *self._follow_ups[action.label]))

    def spans(self, prompt: Prompt) -> list[tuple[int, int]]:
        """First and past-the-end character, in the user's text, of every token that `encode` puts
        before the tail."""
        return [(token.start, token.end) for token in self._user(prompt)]

    def decode(self, ids: list[int]) -> str:
        """Text of generated ids, without control tokens."""
        [text] = self._markup.decode_batch([ids], skip_special_tokens=True)
        return str(text)

    def _ids(self, markup: str) -> tuple[int, ...]:
        return tuple(_encoding(self._markup, markup).ids)

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
        return [token.number for token in self._user(prompt)]

    def _user(self, prompt: Prompt) -> Iterator[_Token]:
        yield from self._encoded(prompt.before, 0)
        yield from self._text(prompt)

    def _text(self, prompt: Prompt) -> Iterator[_Token]:
        """The text part: whole texts while there is room, the next one cut, the others not at
        all."""
        place, room = len(prompt.before), TEXT_TOKENS
        for text in prompt.texts:
            inside, behind = place + len(TEXT_OPENS), place + len(TEXT_OPENS) + len(text)
            kept = list(self._encoded(text, inside))[:room]
            if kept:
                yield from self._encoded(TEXT_OPENS, place)
                yield from kept
                yield from self._encoded(TEXT_CLOSES, behind)
            room -= len(kept)
            place = behind + len(TEXT_CLOSES)

    def _encoded(self, text: str, place: int) -> Iterator[_Token]:
        """The tokens of a piece that begins at `place`, none of them a control token. Raises
        `PolicyAbstained` for a text that the library fails at."""
        try:
            with refusals("the tokenizer"):
                encoding = _encoding(self._plain, text)
        except ModelFileError as error:
            raise PolicyAbstained(AbstainReason.BACKEND_PROTOCOL, str(error)) from error
        for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if number not in self.control_ids:
                yield _Token(number, place + start, place + end)

    def _label_ids(
        self, labels: Sequence[str], before: str, before_ids: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Ids of labels after a text, whose own ids they must not change."""
        found = tuple(self._label_id(label, before, before_ids) for label in labels)
        if len(set(found)) != len(labels):
            raise ModelFileError(f"labels share tokens: {dict(zip(labels, found, strict=True))}")
        return found

    def _label_id(self, label: str, before: str, before_ids: tuple[int, ...]) -> int:
        ids = self._ids(before + label)
        rest = ids[len(before_ids) :]
        if ids[: len(before_ids)] != before_ids or len(rest) != 1:
            tokens = [self._markup.id_to_token(number) for number in ids[-4:]]
            raise ModelFileError(
                f"label {label} is not exactly one token after the marker, the end reads {tokens}: "
                "this model cannot answer with one letter, choose another"
            )
        return int(rest[0])


def _encoding(tokenizer: Tokenizer, text: str) -> Encoding:
    """As `encode` does, which does not let other threads run meanwhile."""
    [encoding] = tokenizer.encode_batch([text], add_special_tokens=False)
    return encoding


def _frame(render: ChatTemplate | None, bos: str) -> _Frame:
    """By the chat template, or without one."""
    questions = [
        f"In one short sentence, why may it be right to {_in_words(action)}?" for action in ACTIONS
    ]
    if render is None:
        return _Frame(
            f"{bos}{SYSTEM}\n\n",
            "\nAnswer:\n",
            tuple(
                f"\nAnswer:\n{action.label}\n{question}\n"
                for action, question in zip(ACTIONS, questions, strict=True)
            ),
        )
    user = {"role": "user", "content": SENTINEL}
    (head, tail), *longer = render.split(
        [[user]]
        + [
            [
                user,
                {"role": "assistant", "content": action.label},
                {"role": "user", "content": question},
            ]
            for action, question in zip(ACTIONS, questions, strict=True)
        ]
    )
    return _Frame(head, tail, tuple(after for _, after in longer))


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer over the same vocabulary, knowing no control token: `<|im_end|>` in a text
    is nine ordinary pieces of text."""
    plain = Tokenizer(tokenizer.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        setattr(plain, part, getattr(tokenizer, part))
    return plain


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file."""
    return read_object(path) if path.is_file() else {}


def _chat_template(directory: Path, settings: dict[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return read_text(path)
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
