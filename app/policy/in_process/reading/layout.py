"""How the tokens of a pass lie: the prompt's tail with questions as branches of it, copies of it
behind a user's text, who sees whom, and where labels are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, islice, pairwise
from typing import NamedTuple

import torch

from app.domain.model.questions import QuestionName
from app.policy.encoding import PromptEncoder

LogProbabilities = tuple[float, ...]


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

    def behind(self, text: int, ends: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Who sees whom where copies of it stand behind a user's text, and where everything stands
        after the head.

        Columns are `text` places for the user's text and padding, then the copies. `ends` is
        (rows, copies + 1): how many tokens of the text each copy sees, and in the last place the
        text.

        Returns
        -------
        (rows, columns that look, columns that are seen) bool, and positions (rows, columns).
        """
        size = len(self.ids)
        columns = torch.arange(text + size * (ends.shape[1] - 1))
        copy_of = torch.where(columns < text, -1, (columns - text) // size)  # -1: the user's text
        end = ends[:, copy_of]  # (rows, columns), by the one that looks; -1 is the last place
        # A copy follows what it sees; every position sees the head, so none sees nothing.
        in_copy = torch.where(copy_of >= 0, (columns - text) % size, 0)
        positions = torch.where(copy_of >= 0, end + self.depth[in_copy], columns)
        of_text = (columns < end[:, :, None]) & (columns <= columns[:, None])
        of_copy = (copy_of[:, None] == copy_of[None, :]) & self.seen[in_copy][:, in_copy]
        seen = torch.where((copy_of < 0)[None, :], of_text, of_copy)
        return seen, positions

    def labels_in(self, logits: torch.Tensor) -> list[LogProbabilities]:
        """The labels' share of logits (rows, ends, vocabulary): those of the action, then of each
        question."""
        with torch.inference_mode():
            log_probs = torch.log_softmax(logits.float(), dim=-1)
            chosen = [log_probs[:, end, ids] for end, ids in enumerate(self.labels)]
            return [tuple(row) for row in torch.cat(chosen, dim=1).tolist()]


def mask_of(seen: torch.Tensor, head: int) -> torch.Tensor:
    """What is added to attention scores: (rows, 1, columns that look, head and columns that are
    seen). Everybody sees the head."""
    rows, looking, looked_at = seen.shape
    mask = torch.zeros(rows, 1, looking, head + looked_at)
    mask[:, 0, :, head:].masked_fill_(~seen, torch.finfo(mask.dtype).min)
    return mask


def parted(
    row: LogProbabilities, encoder: PromptEncoder, asked: Iterable[QuestionName]
) -> tuple[LogProbabilities, dict[QuestionName, LogProbabilities]]:
    """A reading's labels, and those of the questions behind them, in the order of asking."""
    remaining = iter(row)
    labels = tuple(islice(remaining, len(encoder.label_ids)))
    sizes = ((name, len(encoder.question(name).label_ids)) for name in asked)
    return labels, {name: tuple(islice(remaining, size)) for name, size in sizes}
