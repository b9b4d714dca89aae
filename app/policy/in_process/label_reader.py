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

import copy
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from app.domain.errors import ModelFileError
from app.domain.model.questions import QuestionName
from app.domain.record.decision import Engine
from app.policy.encoding import PROMPT_TOKENS, PromptEncoder
from app.policy.in_process.adapter import Adapter
from app.policy.in_process.numbers import Known
from app.policy.in_process.packed import Switch
from app.policy.in_process.weights import load_model

PREFILL_TOKENS = 32
"""Tokens of a rationale's prompt that one step reads: about as long as a decision may have to wait
for it."""
TRUNKS = 8
"""User texts whose keys and values are kept, the latest: some 7 MB each for the small model and a
usual prompt."""

_EMBEDDINGS = "embeddings"
LogProbabilities = tuple[float, ...]
Trunk = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of a user's tokens by layer, each (heads, tokens, head size)."""


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


class Place(NamedTuple):
    """Where an adapter works in a pass: positions counted through all rows, the first of them being
    token `begin` of what it works on, and the features of the scenario that is read there."""

    adapter: Adapter | None
    positions: torch.Tensor
    numbers: Known = ()
    begin: int = 0


class Row(NamedTuple):
    """What a version reads of a prompt that is kept or read whole: its adapter, what stands before
    the tail, and the scenario's features."""

    adapter: Adapter | None
    before: Any
    numbers: Known = ()


class Branched(NamedTuple):
    """The prompt's tail with questions as branches of it, W tokens in all.

    ids : (W,) the tail's, then those of each question.
    branch : (W,) 0 in the tail, 1 in the first question, and so on.
    depth : (W,) how many tokens a token has before it, in the tail and its own branch.
    ends : where labels are read: the end of the tail, and of each question.
    labels : their ids, for each end.
    """

    ids: tuple[int, ...]
    branch: torch.Tensor
    depth: torch.Tensor
    ends: tuple[int, ...]
    labels: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, encoder: PromptEncoder, questions: Sequence[QuestionName]) -> Branched:
        """Raises `ModelFileError` where the tokenizer cannot ask a question."""
        asked = [encoder.question(name) for name in questions]
        tail = len(encoder.tail)
        parts = [encoder.tail, *(question.ids for question in asked)]
        label_ids = [encoder.label_ids, *(question.label_ids for question in asked)]
        return cls(
            tuple(number for part in parts for number in part),
            torch.tensor([turn for turn, part in enumerate(parts) for _ in part]),
            torch.tensor(
                [*range(tail), *(tail + place for part in parts[1:] for place in range(len(part)))]
            ),
            tuple(end - 1 for end in accumulate(map(len, parts))),
            tuple(torch.tensor(ids) for ids in label_ids),
        )

    @property
    def seen(self) -> torch.Tensor:
        """(W that look, W that are seen) bool: a branch sees the tail and itself, up to where it
        is."""
        columns = torch.arange(len(self.ids))
        own = (self.branch[None, :] == 0) | (self.branch[None, :] == self.branch[:, None])
        return own & (columns[None, :] <= columns[:, None])

    @property
    def chains(self) -> list[tuple[int, ...]]:
        """The tail, and the tail with each question: what a model reads that takes no mask."""
        tail = self.ids[: self.ends[0] + 1]
        return [
            tail,
            *((*tail, *self.ids[begin + 1 : end + 1]) for begin, end in pairwise(self.ends)),
        ]


class LabelReader:
    """Reads labels with the head's keys and values computed once.

    Parameters
    ----------
    model : a causal LM in float32 and eval mode.
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
                past_key_values=DynamicCache(config=model.config),
                use_cache=True,
                logits_to_keep=1,
            )
        self._head: Cache = output.past_key_values
        plain = all(type(layer) is DynamicLayer for layer in self._head.layers)
        self.keeps_trunks = plain and {"attention_mask", "position_ids"} <= accepted.keys()
        self.rough: Switch | None = None
        """What has the layers read roughly; None where they cannot."""
        self._trunks: OrderedDict[tuple[tuple[int, ...], bool], Trunk] = OrderedDict()
        """By the user's tokens, and whether they were read roughly."""
        self._hooked: set[str] = set()
        self._active: list[tuple[Adapter, torch.Tensor]] = []
        self._shifts: list[tuple[torch.Tensor, torch.Tensor]] = []

    @classmethod
    def load(cls, directory: Path, limit: int = PROMPT_TOKENS) -> LabelReader:
        """Load a Hugging Face causal LM directory from safetensors, in float32. Raises
        `ModelFileError`."""
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

        What several versions have in common is computed once, and kept for the latest `TRUNKS`
        prompts. Models whose layers do not keep the keys and values of every token (sliding
        windows) take a whole pass per version.

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
        kept = {ask: trunk for ask in asks if (trunk := self._kept(ask)) is not None}
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
            self._trunks.pop((self._user(ask.ids), ask.rough), None)
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

    def _kept(self, ask: Ask) -> Trunk | None:
        """The trunk that an ask may be read over: never a rough one where it is to be exact."""
        user = self._user(ask.ids)
        exact = self._trunks.get((user, False))
        return self._trunks.get((user, True)) if exact is None and ask.rough else exact

    def begin(
        self,
        ids: Sequence[int],
        adapter: Adapter | None = None,
        user_tokens: int = 0,
        numbers: Known = (),
    ) -> Continuation:
        """Start generating after head + `ids`; `advance` does the work. An adapter works on all but
        the first `user_tokens` ids, so also on what is generated."""
        text = Continuation(self._expanded_head(1), list(ids), adapter, user_tokens, numbers)
        user = tuple(ids[:user_tokens])
        trunk = self._trunks.get((user, False), self._trunks.get((user, True)))
        if trunk is not None:
            text.cache = self._cache_of([trunk])
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
        with self._adapted([place]):
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
        with self._adapted(places):
            output = self.model(
                input_ids=padded,
                past_key_values=self._expanded_head(len(texts)),
                use_cache=True,
                logits_to_keep=ends,
            )
        logits = output.logits[torch.arange(len(texts)), column]
        return _labels(logits.unflatten(0, (len(rows), len(chains))), branched)

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
        seen, after_head = _layout(torch.tensor(ends), text, branched)
        read = text - begin + size * torch.arange(copies)[:, None] + torch.tensor(branched.ends)
        cache = self._expanded_head(len(asks))
        if begin:
            cache = self._read_roughly(
                rows[:, :begin], _mask(seen[:, :begin, :begin], head), head + after_head, cache
            )
        with self._adapted(places):
            output = self.model(
                input_ids=rows[:, begin:],
                attention_mask=_mask(seen[:, begin:], head),
                position_ids=head + after_head[:, begin:],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=read.flatten(),
            )
        self._remember(users, output.past_key_values, rough)
        # Row by row, copy by copy.
        found = _labels(output.logits.unflatten(1, read.shape).flatten(0, 1), branched)
        return [found[n * copies : n * copies + len(them)] for n, them in enumerate(tails)]

    def _read_roughly(
        self, rows: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache
    ) -> Cache:
        """Keys and values of users' texts behind those of the head, in bfloat16 where that is
        faster here."""
        with self._adapted([]), self.rough.roughly() if self.rough else nullcontext():
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
        with self._adapted(places):
            output = self.model(
                input_ids=torch.tensor([branched.ids] * len(rows)),
                attention_mask=_mask(seen, head),
                position_ids=head + lengths[:, None] + branched.depth,
                past_key_values=self._cache_of([row.before for row in rows]),
                use_cache=True,
                logits_to_keep=torch.tensor(branched.ends),
            )
        return _labels(output.logits, branched)

    def _user(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return ids[: len(ids) - len(self.encoder.tail)]

    def _remember(self, users: Sequence[tuple[int, ...]], cache: Cache, rough: bool) -> None:
        """Keep the latest trunks: the users' part of each row."""
        begin = len(self.encoder.head)
        for number, user in list(enumerate(users))[-TRUNKS:]:
            part = slice(begin, begin + len(user))
            self._trunks[user, rough] = [
                (layer.keys[number, :, part].clone(), layer.values[number, :, part].clone())
                for layer in cache.layers
            ]
        while len(self._trunks) > TRUNKS:
            self._trunks.popitem(last=False)

    def _expanded_head(self, rows: int) -> Cache:
        """The head's cache for `rows` prompts. Views where a layer replaces its tensors when it
        grows (it then never writes into ours), else a deep copy."""
        layers = self._head.layers
        if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
            copied = copy.deepcopy(self._head)
            copied.batch_repeat_interleave(rows)
            return copied
        cache = copy.copy(self._head)
        cache.layers = [copy.copy(layer) for layer in layers]
        for layer in cache.layers:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
        return cache

    def _cache_of(self, trunks: Sequence[Trunk]) -> Cache:
        """Head and trunks as one cache, a row for each, padded on the right with zeros."""
        cache = copy.copy(self._head)
        cache.layers = [copy.copy(layer) for layer in self._head.layers]
        begin = len(self.encoder.head)
        width = max(trunk[0][0].shape[-2] for trunk in trunks)
        for number, layer in enumerate(cache.layers):
            sides = []
            for side, head in enumerate((layer.keys, layer.values)):
                whole = head.new_zeros(len(trunks), head.shape[1], begin + width, head.shape[3])
                whole[:, :, :begin] = head
                for row, trunk in enumerate(trunks):
                    states = trunk[number][side]
                    whole[row, :, begin : begin + states.shape[-2]] = states
                sides.append(whole)
            layer.keys, layer.values = sides
        return cache

    @contextmanager
    def _adapted(self, places: Sequence[Place]) -> Iterator[None]:
        """Inference in which each adapter works on its places."""
        by_adapter: dict[Adapter, list[torch.Tensor]] = {}
        for place in places:
            if place.adapter is not None and len(place.positions):
                by_adapter.setdefault(place.adapter, []).append(place.positions)
        for adapter in by_adapter:
            for name in adapter.deltas.keys() - self._hooked:
                self.model.get_submodule(name).register_forward_hook(self._hook(name))
                self._hooked.add(name)
        self._active.extend(
            (adapter, torch.cat(positions)) for adapter, positions in by_adapter.items()
        )
        self._shifts.extend(_shifts(places))
        if self._shifts and _EMBEDDINGS not in self._hooked:
            self.model.get_input_embeddings().register_forward_hook(self._shifting())
            self._hooked.add(_EMBEDDINGS)
        try:
            with torch.inference_mode():
                yield
        finally:
            self._active.clear()
            self._shifts.clear()

    def _shifting(self) -> Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], None]:
        """What adds the active adapters' numbers to the embeddings, in place."""
        shifts = self._shifts  # As below: not this reader.

        def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            for positions, shift in shifts:
                output.view(-1, output.shape[-1]).index_add_(0, positions, shift)

        return add

    def _hook(self, name: str) -> Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], None]:
        """What adds the active adapters' terms to the output of the linear layer `name`, in
        place."""
        active = (
            self._active
        )  # Not this reader: a model that is closed would wait for the garbage collector.

        def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            for adapter, positions in active:
                delta = adapter.deltas.get(name)
                if delta is not None:
                    states = inputs[0].flatten(0, -2)[positions]
                    output.view(-1, output.shape[-1]).index_add_(
                        0, positions, states @ delta.down.T @ delta.up.T
                    )

        return add


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


def _shifts(places: Iterable[Place]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Positions, and what adapters that read numbers add to the embeddings there."""
    for place in places:
        numbers = None if place.adapter is None else place.adapter.numbers
        if numbers is None or not place.numbers:
            continue
        shift = numbers.of(place.numbers)[place.begin :][: len(place.positions)]
        yield place.positions[: len(shift)], shift


def _places(
    asks: Sequence[Ask], tails: Sequence[Sequence[Tail]], first: int, size: int, width: int
) -> list[Place]:
    """Where adapters work in rows of `width` columns, of which copies begin at `first`."""
    return [
        Place(adapter, number * width + first + turn * size + torch.arange(size), ask.numbers)
        for number, (ask, them) in enumerate(zip(asks, tails, strict=True))
        for turn, (adapter, _) in enumerate(them)
    ]


def _layout(ends: torch.Tensor, text: int, branched: Branched) -> tuple[torch.Tensor, torch.Tensor]:
    """Who sees whom in a joint pass, and where everything stands after the head.

    Columns are `text` places for the user's text and padding, then copies of the tail with its
    branches. `ends` is (rows, copies + 1): how many tokens of the text each copy sees, and in the
    last place the text.

    Returns
    -------
    (rows, columns that look, columns that are seen) bool, and positions (rows, columns).
    """
    size = len(branched.ids)
    columns = torch.arange(text + size * (ends.shape[1] - 1))
    copy_of = torch.where(columns < text, -1, (columns - text) // size)  # -1: the user's text
    end = ends[:, copy_of]  # (rows, columns), by the one that looks; -1 is the last place
    # A copy follows what it sees; every position sees the head, so none sees nothing.
    in_copy = torch.where(copy_of >= 0, (columns - text) % size, 0)
    positions = torch.where(copy_of >= 0, end + branched.depth[in_copy], columns)
    of_text = (columns < end[:, :, None]) & (columns <= columns[:, None])
    of_copy = (copy_of[:, None] == copy_of[None, :]) & branched.seen[in_copy][:, in_copy]
    seen = torch.where((copy_of < 0)[None, :], of_text, of_copy)
    return seen, positions


def _mask(seen: torch.Tensor, head: int) -> torch.Tensor:
    """What is added to attention scores: (rows, 1, columns that look, head and columns that are
    seen). Everybody sees the head."""
    rows, looking, looked_at = seen.shape
    mask = torch.zeros(rows, 1, looking, head + looked_at)
    mask[:, 0, :, head:].masked_fill_(~seen, torch.finfo(mask.dtype).min)
    return mask


def _labels(logits: torch.Tensor, branched: Branched) -> list[LogProbabilities]:
    """The labels' share of logits (rows, ends, vocabulary): those of the action, then of each
    question."""
    with torch.inference_mode():
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        chosen = [log_probs[:, end, ids] for end, ids in enumerate(branched.labels)]
        return [tuple(row) for row in torch.cat(chosen, dim=1).tolist()]


def parted(
    row: LogProbabilities, encoder: PromptEncoder, asked: Iterable[QuestionName]
) -> tuple[LogProbabilities, dict[QuestionName, LogProbabilities]]:
    """A reading's labels, and those of the questions behind them, in the order of asking."""
    remaining = iter(row)
    labels = tuple(islice(remaining, len(encoder.label_ids)))
    sizes = ((name, len(encoder.question(name).label_ids)) for name in asked)
    return labels, {name: tuple(islice(remaining, size)) for name, size in sizes}


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
