"""The policy that is trained: the base model, frozen, with LoRA through PEFT, read as label
log-probabilities.

Two kinds. *Activated* (PEFT `alora_invocation_tokens` = the prompt's tail; Greenewald et al. 2025):
tokens before the tail are the base model's, so the pass begins with the cached keys and values of
head and user's text and reads the tail alone; gradients flow through the tail only, because nothing
before it is adapted. *Ordinary*: every token is adapted and read; it can be merged into a plain
model directory, which vLLM serves.

Both are modules called with rows of an `Encoded`, so that `Accelerator.prepare` can wrap them.
"""

from __future__ import annotations

import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from app.domain.model.questions import QuestionName
from app.policy.in_process.label_reader import LabelReader
from app.policy.in_process.numbers import Numbers
from app.policy.in_process.reading.layout import Branched
from app.policy.versions.store import NUMBERS_NAME
from training.arrays import Rows
from training.config.learning import AdapterConfig
from training.learning.model.base_pass import Encoded
from training.learning.model.shards import EncodeError, head_states
from training.learning.model.tail_attention import Past, looking_back

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)
_NO_NUMBERS = "the base pass has no numbers: build its stage again"
_ALIKE = 1e-9
"""A feature whose spread is below this share of its size is always the same."""


class PolicyOutput(NamedTuple):
    """What one pass reads.

    `labels` (B, 10): log-probabilities of the labels after the tail, over the whole vocabulary,
    nats. `text` (B, T): log-probability of each token of the given texts, 0 where a text has ended;
    None without texts. `questions`: the same as `labels` of each question that was asked, (B, its
    labels).
    """

    labels: Tensor
    text: Tensor | None
    questions: Mapping[QuestionName, Tensor] = {}


class PolicyModel(torch.nn.Module, ABC):
    """Base of the two kinds: label log-probabilities of rows, and log-probabilities of texts after
    the tail.

    Parameters
    ----------
    model : a PEFT model, or for comparison the plain base model.
    reader : the base model's reader, for its encoder.
    encoded : the rows.
    numbers : what it reads past the text.
    """

    def __init__(
        self, model: Any, reader: LabelReader, encoded: Encoded, numbers: Numbers | None = None
    ):
        super().__init__()
        self.model = model
        self.numbers = numbers
        self.transformer: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.encoded = encoded
        self.encoder = reader.encoder
        self.head = list(reader.encoder.head)
        self.tail = list(reader.encoder.tail)
        self.label_ids: Tensor
        labels = torch.tensor(reader.encoder.label_ids)
        self.register_buffer("label_ids", labels, persistent=False)
        self.to(reader.model.device)

    @property
    def device(self) -> torch.device:
        """Where the pass runs."""
        return self.label_ids.device

    def forward(
        self,
        rows: Tensor,
        texts: Sequence[Sequence[int]] | None = None,
        questions: Sequence[QuestionName] = (),
    ) -> PolicyOutput:
        """Read `rows` (B,). `texts` are token ids that follow the tail, one per row; they may
        differ in length. `questions` are asked in the same pass, of prompts without texts."""
        indices = [int(row) for row in rows]
        if texts is None:
            return self._answers(indices, Branched.of(self.encoder, questions), questions)
        suffixes = [[*self.tail, *text] for text in texts]
        log_probs = torch.log_softmax(self._logits(indices, suffixes).float(), -1)
        first = len(self.tail) - 1
        padded = pad_sequence(
            [torch.tensor(text) for text in texts], batch_first=True, padding_value=-1
        ).to(self.device)
        picked = log_probs[:, first:-1].gather(2, padded.clamp(min=0)[:, :, None]).squeeze(2)
        return PolicyOutput(log_probs[:, first, self.label_ids], picked * (padded >= 0))

    def _answers(
        self, rows: list[int], branched: Branched, questions: Sequence[QuestionName]
    ) -> PolicyOutput:
        suffixes = [list(branched.ids)] * len(rows)
        log_probs = torch.log_softmax(self._logits(rows, suffixes, branched).float(), -1)
        labels, *others = (
            log_probs[:, end, ids.to(self.device)] for end, ids in enumerate(branched.labels)
        )
        return PolicyOutput(labels, None, dict(zip(questions, others, strict=True)))

    def distributions(self, rows: Sequence[int], texts: Sequence[Sequence[int]]) -> Tensor:
        """(B, T, V): log-probabilities of every token at each place of the texts; arbitrary where a
        text has ended."""
        suffixes = [[*self.tail, *text] for text in texts]
        logits = self._logits([int(row) for row in rows], suffixes)
        return torch.log_softmax(logits[:, len(self.tail) - 1 : -1].float(), -1)

    @abstractmethod
    def _logits(
        self, rows: list[int], suffixes: list[list[int]], branched: Branched | None = None
    ) -> Tensor:
        """Logits after every token of the suffixes (B, S, V); where they are all one tail with its
        questions, after each of its ends alone (B, ends, V)."""


class ActivatedPolicy(PolicyModel):
    """Reads the tail over cached keys and values. Refuses what `head_states` refuses."""

    def __init__(
        self, model: Any, reader: LabelReader, encoded: Encoded, numbers: Numbers | None = None
    ):
        super().__init__(model, reader, encoded, numbers)
        base = model.disable_adapter if isinstance(model, PeftModel) else _nothing
        with base():
            self.head_states: Tensor
            self.register_buffer("head_states", head_states(reader), persistent=False)

    def _logits(
        self, rows: list[int], suffixes: list[list[int]], branched: Branched | None = None
    ) -> Tensor:
        user, lengths = self.encoded.keys_values(rows)
        suffix_ids = [torch.tensor(suffix) for suffix in suffixes]
        ids = pad_sequence(suffix_ids, batch_first=True).to(self.device)
        size = ids.shape[1]
        hidden = torch.zeros(len(rows), user.shape[-2]).masked_fill(
            torch.arange(user.shape[-2]) >= lengths[:, None], -torch.inf
        )
        seen = None if branched is None else branched.seen.to(self.device)
        past = Past(self.head_states, user.to(self.device), hidden.to(self.device), seen)
        after_user = torch.arange(size) if branched is None else branched.depth
        positions = len(self.head) + lengths[:, None] + after_user
        # Every token here is at or after the invocation. PEFT would look for its last occurrence,
        # which in a dialogue is a later turn of the assistant.
        offsets = {"alora_offsets": [size] * len(rows)} if isinstance(self.model, PeftModel) else {}
        with looking_back(self.transformer, past):
            output = self.model(
                **self._read(ids, rows),
                position_ids=positions.to(self.device),
                use_cache=False,
                logits_to_keep=_read_at(branched, self.device),
                **offsets,
            )
        return output.logits  # type: ignore[no-any-return]

    def _read(self, ids: Tensor, rows: list[int]) -> dict[str, Tensor]:
        """What the model is given: ids, or their embeddings with the numbers added."""
        if self.numbers is None:
            return {"input_ids": ids}
        if self.encoded.numbers is None:
            raise EncodeError(_NO_NUMBERS)
        embeddings = self.transformer.get_input_embeddings()(ids)
        shift = self.numbers(torch.from_numpy(self.encoded.numbers[rows]))
        shifted = embeddings[:, : self.numbers.tokens] + shift
        rest = embeddings[:, self.numbers.tokens :]
        return {"inputs_embeds": torch.cat([shifted, rest], dim=1)}


class OrdinaryPolicy(PolicyModel):
    """Reads the whole prompt: for adapters that change every token."""

    def _logits(
        self, rows: list[int], suffixes: list[list[int]], branched: Branched | None = None
    ) -> Tensor:
        # Suffixes are padded on the right to one length, then whole texts on the left: all suffixes
        # stand in the same places, the last `size` ones. What is on the right is read, but nothing
        # looks back at it.
        filler, size = self.tail[-1], max(map(len, suffixes))
        before = [[*self.head, *self.encoded.ids(row)] for row in rows]
        width = max(map(len, before))
        padding = torch.tensor([width - len(text) for text in before])
        ids = torch.tensor(
            [
                [filler] * (width - len(text)) + text + suffix + [filler] * (size - len(suffix))
                for text, suffix in zip(before, suffixes, strict=True)
            ]
        )
        place = torch.arange(width) - padding[:, None]
        after = torch.arange(size) if branched is None else branched.depth
        positions = torch.cat([place.clamp(min=0), width - padding[:, None] + after], 1)
        output = self.model(
            input_ids=ids.to(self.device),
            attention_mask=self._mask(padding, width, size, branched).to(self.device),
            position_ids=positions.to(self.device),
            use_cache=False,
            logits_to_keep=size if branched is None else width + _read_at(branched, self.device),
        )
        return output.logits  # type: ignore[no-any-return]

    def _mask(self, padding: Tensor, width: int, size: int, branched: Branched | None) -> Tensor:
        """Which tokens are there, (B, width + size); with questions, what is added to attention
        scores, (B, 1, width + size that look, and that are seen)."""
        there = torch.arange(width + size) >= padding[:, None]
        if branched is None or len(branched.ends) == 1:
            return there.long()
        seen = torch.ones(width + size, width + size, dtype=torch.bool).tril()
        seen[width:, width:] = branched.seen
        # A place of the padding sees itself, so that none sees nothing.
        visible = (seen & there[:, None]) | torch.eye(width + size, dtype=torch.bool)
        mask = torch.zeros(visible.shape)
        return mask.masked_fill_(~visible, torch.finfo(mask.dtype).min)[:, None]


def _read_at(branched: Branched | None, device: torch.device) -> Any:
    """Which logits a pass keeps: an index, since a slice of a batch makes the product with the
    vocabulary ten times slower; 0 keeps all."""
    return 0 if branched is None else torch.tensor(branched.ends, device=device)


@contextmanager
def adapted(
    reader: LabelReader,
    encoded: Encoded,
    config: AdapterConfig,
    seed: int,
    rows: Rows | None = None,
) -> Iterator[PolicyModel]:
    """The reader's model with a fresh adapter (B = 0: it starts as the base model); taken off again
    at the end. `rows` train it: numbers are told in units of theirs; by default all."""
    numbers = _fresh_numbers(reader, encoded, config.numbers, rows) if config.numbers else None
    torch.manual_seed(seed)
    tail = list(reader.encoder.tail) if config.kind == "activated" else None
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules=list(config.targets),
        alora_invocation_tokens=tail,
    )
    with _without_deprecations():
        model = get_peft_model(reader.model, lora)
    kind = ActivatedPolicy if config.kind == "activated" else OrdinaryPolicy
    try:
        yield kind(model, reader, encoded, numbers)
    finally:
        model.unload()
        reader.model.requires_grad_(False)


def _fresh_numbers(
    reader: LabelReader, encoded: Encoded, tokens: int, rows: Rows | None
) -> Numbers:
    """A map that adds nothing yet. A feature that is never known among the rows, or always the
    same, teaches nothing, and keeps adding nothing."""
    tail = len(reader.encoder.tail)
    if encoded.numbers is None:
        raise EncodeError(_NO_NUMBERS)
    if tokens > tail:
        raise EncodeError(f"numbers cannot be added to {tokens} tokens of a tail of {tail}")
    given = encoded.numbers if rows is None else encoded.numbers[rows]
    known = np.isfinite(given)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, given, 0.0).sum(0) / count
    spread = np.sqrt((np.where(known, given - mean, 0.0) ** 2).sum(0) / count)
    embedding = reader.model.get_input_embeddings().embedding_dim
    return Numbers(
        torch.from_numpy(mean),
        torch.from_numpy(np.where(spread > _ALIKE * np.abs(mean), spread, 1.0)),
        torch.zeros(tokens, len(mean), embedding),
        left_out=encoded.left_out,
    )


@contextmanager
def opened(reader: LabelReader, encoded: Encoded, folder: Path) -> Iterator[PolicyModel]:
    """The reader's model with a saved adapter, of either kind; taken off again at the end. Raises
    `EncodeError` when it does not read the lines that the base pass read."""
    size = reader.model.get_input_embeddings().embedding_dim
    numbers = Numbers.load(folder, len(reader.encoder.tail), size)
    if (frozenset() if numbers is None else numbers.left_out) != encoded.left_out:
        raise EncodeError(f"{folder} was trained on other lines: set encode.leave_out as there")
    with _without_deprecations():
        model = PeftModel.from_pretrained(reader.model, folder).eval()
    activated = model.peft_config[model.active_adapter].alora_invocation_tokens is not None
    try:
        yield (ActivatedPolicy if activated else OrdinaryPolicy)(model, reader, encoded, numbers)
    finally:
        model.unload()
        reader.model.requires_grad_(False)


def save_adapter(policy: PolicyModel, folder: Path, base_name: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, PEFT's own files, and, where
    numbers are read, `numbers.safetensors`; nothing else.

    `base_name` (a model version) replaces the base's path, which would tell about the machine.
    """
    model: PeftModel = policy.model
    config = model.peft_config[model.active_adapter]
    path, config.base_model_name_or_path = config.base_model_name_or_path, base_name
    model.save_pretrained(folder, save_embedding_layers=False)
    config.base_model_name_or_path = path
    (folder / "README.md").unlink(missing_ok=True)
    if policy.numbers is not None:
        policy.numbers.save(folder)


def load_adapter(policy: PolicyModel, folder: Path) -> None:
    """Put a saved adapter's weights into the policy's own, which must be of the same shape."""
    set_peft_model_state_dict(policy.model, load_file(folder / "adapter_model.safetensors"))
    if policy.numbers is not None and (folder / NUMBERS_NAME).is_file():
        tensors = load_file(folder / NUMBERS_NAME)
        policy.numbers.weight.data.copy_(tensors["weight"])


def save_merged(adapter: Path, reader: LabelReader, base: Path, folder: Path) -> None:
    """An ordinary adapter merged into the base: a plain model directory, as vLLM serves it. Raises
    `ValueError` from PEFT for an activated one, which cannot be merged."""
    with _without_deprecations():
        merged = PeftModel.from_pretrained(reader.model, adapter).merge_and_unload()
    merged.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """PEFT 0.21 asks transformers for a name that is to go in its version 6."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        yield


@contextmanager
def _nothing() -> Iterator[None]:
    yield
