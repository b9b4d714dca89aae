"""A causal language model on the CPU: label log-probabilities of a batch of prompts, and greedy
text.

Synchronous and for one thread at a time; `Batcher` gives it a thread, training and calibration call
it directly, so serving and training read labels through the same code.

Several versions may be activated adapters over one base model. They change nothing before the
prompt's tail, so one pass serves them all: each version has its own copy of the tail in it, on
which its adapter works, and which sees head, user's text and itself. A prompt with a text part is
read with and without it in the same pass: each version has a second copy, which sees only what
stands before the text. Questions beside the action are branches of a copy: each sees the tail and
itself, and costs its own two tokens. The keys and values of the user's text (the *trunk*) are the
base model's; they are kept for a while, so that a version that is asked later, or for a rationale,
reads no more than what follows them.

A rough reading reads the user's text in bfloat16, in a step of its own, and everything behind it,
where a little counts, in float32.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from app.domain.errors import ModelFileError
from app.domain.model.questions import QuestionName
from app.domain.record.decision import Engine
from app.policy.encoding import PROMPT_TOKENS, PromptEncoder
from app.policy.in_process.adapter import Adapter
from app.policy.in_process.numbers import Known
from app.policy.in_process.packed import Switch
from app.policy.in_process.reading.adapting import Adapting, Place
from app.policy.in_process.reading.layout import Branched, LogProbabilities, mask_of, parted
from app.policy.in_process.reading.trunks import Cache, Trunk, Trunks

PREFILL_TOKENS = 32
"""Tokens of a rationale's prompt that one step reads: about as long as a decision may have to wait
for it."""


class Tail(NamedTuple):
    """One reading of a prompt: by a version's adapter, after the first `seen` of the user's
    tokens."""

    adapter: Adapter | None
    seen: int


class Ask(NamedTuple):
    """One prompt for several versions: ids after the head, each version's adapter (None is the base
    itself), how many of the user's last tokens are of the text part, what is asked beside the
    action, the scenario's features, for adapters that read them, and whether a rough reading will
    do."""

    ids: tuple[int, ...]
    adapters: tuple[Adapter | None, ...]
    text: int = 0
    questions: tuple[QuestionName, ...] = ()
    numbers: Known = ()
    rough: bool = False

    def tails(self, tail: int) -> list[Tail]:
        """What is read of it, `tail` being the tail's length: with the text by every version, then,
        when there is one, without it by every version."""
        user = len(self.ids) - tail
        ends = [user, user - self.text] if self.text else [user]
        return [Tail(adapter, seen) for seen in ends for adapter in self.adapters]


class Row(NamedTuple):
    """What a version reads of a prompt that is kept or read whole: its adapter, what stands before
    the tail, and the scenario's features."""

    adapter: Adapter | None
    before: Any
    numbers: Known = ()


class LabelReader:
    """Reads labels with the head's keys and values computed once.

    Parameters
    ----------
    model : a causal LM in float32 and eval mode, of transformers or of ours, which has the same
        names (`llama`).
    encoder : its prompt encoder.
    engine : what multiplies the model's matrices.
    """

    def __init__(self, model: Any, encoder: PromptEncoder, engine: Engine = Engine.TORCH):
        accepted = inspect.signature(model.forward).parameters
        missing = {"past_key_values", "logits_to_keep"} - accepted.keys()
        if missing:
            raise ModelFileError(
                f"{type(model).__name__} takes no {' and no '.join(sorted(missing))}: not supported"
            )
        self.model = model
        self.encoder = encoder
        self.engine = engine
        self._alone = Branched.of(encoder, ())
        self._stop_ids = encoder.control_ids | _end_tokens(model)
        with torch.inference_mode():
            output = model(
                input_ids=torch.tensor([encoder.head]),
                use_cache=True,
                logits_to_keep=1,
            )
        self._trunks = Trunks(output.past_key_values, len(encoder.head))
        masked = {"attention_mask", "position_ids"} <= accepted.keys()
        self.keeps_trunks = self._trunks.possible and masked
        self.rough: Switch | None = None
        """What has the layers read roughly; None where they cannot."""
        self._adapting = Adapting(model)

    @classmethod
    def load(cls, directory: Path, limit: int = PROMPT_TOKENS) -> LabelReader:
        """Load a Hugging Face causal LM directory from safetensors, in float32, as training adapts
        it. Raises `ModelFileError`."""
        # The service reads models of the usual shape without transformers, which takes seconds.
        from app.policy.in_process.whole.weights import load_model

        return cls(load_model(directory), PromptEncoder.from_directory(directory, limit))

    def read(self, batch: Sequence[Sequence[int]]) -> list[LogProbabilities]:
        """Log-probability (nats, over the whole vocabulary) of every label after each prompt, by
        the base model.

        Parameters
        ----------
        batch : ids after the head, as `PromptEncoder.encode` gives them; rows may differ in length.

        Returns
        -------
        One tuple per row, in the order of `LABELS`.
        """
        tail = len(self.encoder.tail)
        users = [tuple(ids[: len(ids) - tail]) for ids in batch]
        return self._whole_pass([Row(None, user) for user in users], self._alone)

    def answer(self, asks: Sequence[Ask]) -> list[list[LogProbabilities]]:
        """Log-probabilities of the labels after each prompt, by every version that was asked for.

        What several versions have in common is computed once, and kept for the latest prompts.
        Models whose layers do not keep the keys and values of every token (sliding windows) take a
        whole pass per version.

        Returns
        -------
        One list per ask, in the order of its adapters; one twice as long where the prompt has a
        text part, the second half without it. Behind a reading's labels stand those of the
        questions, in the order in which they were asked.
        """
        wanted = {name for ask in asks for name in ask.questions}
        asked = [name for name in QuestionName if name in wanted]
        branched = Branched.of(self.encoder, asked) if asked else self._alone
        found = self._answered(asks, branched)
        return [
            [_picked(row, ask.questions, self.encoder, asked) for row in rows]
            for ask, rows in zip(asks, found, strict=True)
        ]

    def _answered(self, asks: Sequence[Ask], branched: Branched) -> list[list[LogProbabilities]]:
        """As `answer`, every ask with all questions of the batch."""
        tails = [ask.tails(len(self.encoder.tail)) for ask in asks]
        alone = branched is self._alone
        if not self.keeps_trunks or (
            alone
            and not any(ask.rough for ask in asks)
            and all(them == [(None, them[0].seen)] for them in tails)
        ):
            return self._apart(asks, branched)
        trunks = {ask: self._trunks.of(self._user(ask.ids), ask.rough) for ask in asks}
        kept = {ask: trunk for ask, trunk in trunks.items() if trunk is not None}
        found: dict[Ask, list[LogProbabilities]] = {}
        if kept:
            found.update(zip(kept, self._over_trunks(kept, branched), strict=True))
        for rough in (False, True):
            new = [ask for ask in asks if ask not in kept and ask.rough is rough]
            if new:
                found.update(zip(new, self._joint_pass(new, branched, rough), strict=True))
        # What is no number spreads in a row, and into its trunk: then each version is read alone.
        spoilt = [ask for ask in asks if ask not in kept and not _finite(found[ask])]
        for ask in spoilt:
            self._trunks.forget(self._user(ask.ids))
        if spoilt:
            found.update(zip(spoilt, self._apart(spoilt, branched), strict=True))
        return [found[ask] for ask in asks]

    def _apart(self, asks: Sequence[Ask], branched: Branched) -> list[list[LogProbabilities]]:
        """As `answer`, every version in a pass of its own."""
        tails = [ask.tails(len(self.encoder.tail)) for ask in asks]
        rows = [
            Row(tail.adapter, ask.ids[: tail.seen], ask.numbers)
            for ask, them in zip(asks, tails, strict=True)
            for tail in them
        ]
        return _grouped(self._whole_pass(rows, branched), [len(them) for them in tails])

    def begin(
        self,
        ids: Sequence[int],
        adapter: Adapter | None = None,
        user_tokens: int = 0,
        numbers: Known = (),
    ) -> Continuation:
        """Start generating after head + `ids`; `advance` does the work. An adapter works on all but
        the first `user_tokens` ids, so also on what is generated."""
        text = Continuation(self._trunks.head(1), list(ids), adapter, user_tokens, numbers)
        user = tuple(ids[:user_tokens])
        trunk = self._trunks.of(user, rough=True)
        if trunk is not None:
            text.cache = self._trunks.behind_head([trunk])
            text.pending, text.user_tokens = text.pending[user_tokens:], 0
        return text

    def advance(self, text: Continuation) -> None:
        """One short step: read up to `PREFILL_TOKENS` more of the prompt, or generate one token,
        greedily."""
        chunk, text.pending = text.pending[:PREFILL_TOKENS], text.pending[PREFILL_TOKENS:]
        adapted = torch.arange(min(text.user_tokens, len(chunk)), len(chunk))
        text.user_tokens = max(text.user_tokens - len(chunk), 0)
        place = Place(text.adapter, adapted, text.numbers, text.adapted)
        text.adapted += len(adapted)
        with self._adapting.at([place]):
            output = self.model(
                input_ids=torch.tensor([chunk]),
                past_key_values=text.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        text.cache = output.past_key_values
        if text.pending:
            return
        token = int(output.logits[0, -1].argmax())
        if token in self._stop_ids:
            text.finished = True
            return
        text.generated.append(token)
        text.pending = [token]

    def _whole_pass(self, rows: Sequence[Row], branched: Branched) -> list[LogProbabilities]:
        """Labels of users' texts, each by one version, from the head's keys and values on; each
        question is a row of its own.

        Rows are padded on the right: causal attention never looks there, so no mask is needed.
        """
        chains = branched.chains
        texts = [((*row.before, *chain), len(chain), row) for row in rows for chain in chains]
        last = [len(ids) - 1 for ids, _, _ in texts]
        width = max(last) + 1
        padded = torch.tensor([[*ids, *[ids[-1]] * (width - len(ids))] for ids, _, _ in texts])
        ends, column = torch.unique(torch.tensor(last), return_inverse=True)
        places = [
            Place(
                row.adapter,
                torch.arange(number * width + len(ids) - chain, number * width + len(ids)),
                row.numbers,
            )
            for number, (ids, chain, row) in enumerate(texts)
        ]
        with self._adapting.at(places):
            output = self.model(
                input_ids=padded,
                past_key_values=self._trunks.head(len(texts)),
                use_cache=True,
                logits_to_keep=ends,
            )
        logits = output.logits[torch.arange(len(texts)), column]
        return branched.labels_in(logits.unflatten(0, (len(rows), len(chains))))

    def _over_trunks(
        self, kept: Mapping[Ask, Trunk], branched: Branched
    ) -> list[list[LogProbabilities]]:
        """Labels of prompts whose trunks are kept."""
        tails = {ask: ask.tails(len(self.encoder.tail)) for ask in kept}
        rows = [
            Row(
                adapter, [(keys[:, :seen], values[:, :seen]) for keys, values in trunk], ask.numbers
            )
            for ask, trunk in kept.items()
            for adapter, seen in tails[ask]
        ]
        return _grouped(self._tail_pass(rows, branched), [len(them) for them in tails.values()])

    def _joint_pass(
        self, asks: Sequence[Ask], branched: Branched, rough: bool
    ) -> list[list[LogProbabilities]]:
        """Labels of prompts by all versions asked for, in one pass from the head's keys and values
        on; keeps trunks. If `rough`, the user's texts are read first, and roughly.

        A row is the user's text, padding, and a copy of the tail with its branches for each
        reading, at the same columns in every row.
        """
        users = [self._user(ask.ids) for ask in asks]
        head, size = len(self.encoder.head), len(branched.ids)
        tails = [ask.tails(len(self.encoder.tail)) for ask in asks]
        copies, text = max(map(len, tails)), max(map(len, users))
        width = text + copies * size
        filler = [self.encoder.tail[0]]
        rows = torch.tensor(
            [[*user, *filler * (text - len(user)), *branched.ids * copies] for user in users]
        )
        begin = text if rough else 0  # Columns before it are read by then.
        places = _places(asks, tails, text - begin, size, width - begin)
        # Tokens of the user's text that each copy of the tail sees, and the text itself, in the
        # last place: all but padding, as does a copy nobody asked for.
        ends = [
            [*(seen for _, seen in them), *[len(user)] * (copies + 1 - len(them))]
            for them, user in zip(tails, users, strict=True)
        ]
        seen, after_head = branched.behind(text, torch.tensor(ends))
        read = text - begin + size * torch.arange(copies)[:, None] + torch.tensor(branched.ends)
        cache = self._trunks.head(len(asks))
        if begin:
            cache = self._read_roughly(
                rows[:, :begin], mask_of(seen[:, :begin, :begin], head), head + after_head, cache
            )
        with self._adapting.at(places):
            output = self.model(
                input_ids=rows[:, begin:],
                attention_mask=mask_of(seen[:, begin:], head),
                position_ids=head + after_head[:, begin:],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=read.flatten(),
            )
        self._trunks.keep(users, output.past_key_values, rough)
        # Row by row, copy by copy.
        found = branched.labels_in(output.logits.unflatten(1, read.shape).flatten(0, 1))
        return [found[n * copies : n * copies + len(them)] for n, them in enumerate(tails)]

    def _read_roughly(
        self, rows: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache
    ) -> Cache:
        """Keys and values of users' texts behind those of the head, in bfloat16 where that is
        faster here."""
        with self._adapting.at([]), self.rough.roughly() if self.rough else nullcontext():
            output = self.model.base_model(
                input_ids=rows,
                attention_mask=mask,
                position_ids=positions[:, : rows.shape[1]],
                past_key_values=cache,
                use_cache=True,
            )
        filled: Cache = output.past_key_values
        return filled

    def _tail_pass(self, rows: Sequence[Row], branched: Branched) -> list[LogProbabilities]:
        """Labels of prompts, each by one version, from the keys and values of head and user's text
        on.

        Trunks differ in length: they are padded on the right and masked, and positions are counted
        without padding.
        """
        head, size = len(self.encoder.head), len(branched.ids)
        lengths = torch.tensor([row.before[0][0].shape[-2] for row in rows])
        width = int(lengths.max())
        of_text = (torch.arange(width) < lengths[:, None])[:, None].expand(-1, size, -1)
        seen = torch.cat([of_text, branched.seen.expand(len(rows), -1, -1)], dim=2)
        places = [
            Place(row.adapter, torch.arange(number * size, (number + 1) * size), row.numbers)
            for number, row in enumerate(rows)
        ]
        with self._adapting.at(places):
            output = self.model(
                input_ids=torch.tensor([branched.ids] * len(rows)),
                attention_mask=mask_of(seen, head),
                position_ids=head + lengths[:, None] + branched.depth,
                past_key_values=self._trunks.behind_head([row.before for row in rows]),
                use_cache=True,
                logits_to_keep=torch.tensor(branched.ends),
            )
        return branched.labels_in(output.logits)

    def _user(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return ids[: len(ids) - len(self.encoder.tail)]


class Continuation:
    """Text under way: `pending` ids are not read yet, `generated` ones are the text so far. The
    adapter leaves the next `user_tokens` of the pending ids alone, and has worked on `adapted`."""

    def __init__(
        self,
        cache: Cache,
        pending: list[int],
        adapter: Adapter | None = None,
        user_tokens: int = 0,
        numbers: Known = (),
    ):
        self.cache = cache
        self.pending = pending
        self.adapter = adapter
        self.user_tokens = user_tokens
        self.numbers = numbers
        self.adapted = 0
        self.generated: list[int] = []
        self.finished = False


def _finite(rows: Iterable[LogProbabilities]) -> bool:
    return all(math.isfinite(value) for row in rows for value in row)


def _places(
    asks: Sequence[Ask], tails: Sequence[Sequence[Tail]], first: int, size: int, width: int
) -> list[Place]:
    """Where adapters work in rows of `width` columns, of which copies begin at `first`."""
    return [
        Place(adapter, number * width + first + turn * size + torch.arange(size), ask.numbers)
        for number, (ask, them) in enumerate(zip(asks, tails, strict=True))
        for turn, (adapter, _) in enumerate(them)
    ]


def _picked(
    row: LogProbabilities,
    questions: Sequence[QuestionName],
    encoder: PromptEncoder,
    asked: Sequence[QuestionName],
) -> LogProbabilities:
    """Of a reading with the answers to all questions that were asked, those to some of them."""
    labels, answers = parted(row, encoder, asked)
    return (*labels, *(value for name in questions for value in answers[name]))


def _grouped(
    readings: Sequence[LogProbabilities], sizes: Sequence[int]
) -> list[list[LogProbabilities]]:
    """One flat list of readings, cut into lists of these sizes."""
    remaining = iter(readings)
    return [list(islice(remaining, size)) for size in sizes]


def _end_tokens(model: Any) -> frozenset[int]:
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)
