"""What a policy is asked of a scenario beside its action: declared here and nowhere else.

The state (the prompt) is read once. Each question is a tail of its own over it: its text follows
the prompt's tail, as if the answer began with it, and its label is read after that. Texts are two
tokens long: every token is time, and a policy that was trained to answer needs no more words.
Labels are upper-case letters, as actions' are, so that no text from outside holds one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from app.domain.canonical import content_hash


class QuestionName(StrEnum):
    """Closed set; each has its row in docs/questions.md."""

    WIN = "win"
    STOPPED = "stopped"
    RANGE = "range"


@dataclass(frozen=True)
class Question:
    """One question.

    Parameters
    ----------
    name, meaning : what is asked, for programs and for people.
    text : what follows the prompt's tail.
    labels : the answers, each one token of the model.
    values : what each label stands for: 0 and 1 of a chance, else so many ATR.
    edges : where a level ends and the next one begins; a chance has none.
    """

    name: QuestionName
    meaning: str
    text: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    edges: tuple[float, ...] = ()

    @property
    def levels(self) -> tuple[str, ...]:
        """Of a question that has edges: what lies between them, in its unit."""
        edges = [f"{edge:g}" for edge in self.edges]
        between = [f"{low} to {high}" for low, high in pairwise(edges)]
        return (f"below {edges[0]}", *between, f"{edges[-1]} or more") if edges else ()

    @property
    def hash(self) -> str:
        """A version is served only with the questions that it was trained to answer."""
        return content_hash(
            [self.name.value, self.text, list(self.labels), list(self.values), list(self.edges)]
        )


NO_YES, IMPOSSIBLE_CERTAIN = ("N", "Y"), (0.0, 1.0)
QUESTIONS: tuple[Question, ...] = (
    Question(
        QuestionName.WIN,
        "will the agent's plan make money after costs?",
        "win?",
        NO_YES,
        IMPOSSIBLE_CERTAIN,
    ),
    Question(
        QuestionName.STOPPED,
        "will the agent's plan end at its initial stop?",
        "stop?",
        NO_YES,
        IMPOSSIBLE_CERTAIN,
    ),
    # Edges are near the quintiles of 16,850 candidates of 2018-2022, values the geometric means
    # between them.
    Question(
        QuestionName.RANGE,
        "how far will price range until the time exit, highest high less lowest low, in ATR?",
        "range?",
        ("A", "B", "C", "D", "E"),
        (1.4, 1.9, 2.4, 3.1, 5.2),
        (1.7, 2.2, 2.7, 3.7),
    ),
)
BY_NAME: dict[QuestionName, Question] = {question.name: question for question in QUESTIONS}
