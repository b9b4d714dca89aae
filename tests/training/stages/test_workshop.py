"""A declared stage is found again, built anew when anything that it depends on changed, and adopted
only by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple, Self

import pytest

from training.arrays import Progress, silent
from training.config.data import HeldOutConfig, ScenariosConfig
from training.stages.declared import Aside, KeptBy, stage
from training.stages.key import ROOT, Sources, installed
from training.stages.store import MANIFEST, Artifact, ArtifactError, Facts
from training.stages.workshop import Workshop

SELF = "tests/training/stages/test_workshop.py"


@dataclass(frozen=True)
class Words:
    """What the stage `words` leaves."""

    text: str

    @classmethod
    def open(cls, artifact: Artifact) -> Self:
        return cls((artifact / "words.txt").read_text())


@dataclass(frozen=True)
class Book:
    """An input that is no artefact."""

    title: str

    def hash(self) -> str:
        return self.title


@stage("words")
def words(
    folder: Path, book: Book, *, count: int, place: Aside[str] = "", progress: Progress = silent
) -> Facts:
    (folder / "words.txt").write_text(" ".join([book.title] * count))
    progress(count, count)
    return {"count": count, "place": place}


@stage("letters")
def letters(
    folder: Path,
    words: Words,
    others: Mapping[str, Words],
    source: Artifact,
    absent: Words | None = None,
    *,
    upper: bool,
) -> Facts:
    assert absent is None
    text = words.text + "".join(other.text for other in others.values())
    (folder / "letters.txt").write_text(text.upper() if upper else text)
    return {"from": source.path.name}


class Library(NamedTuple):
    """What belongs together."""

    first: Words
    others: Mapping[str, Words]
    book: Book


@stage("read")
def read(folder: Path, library: Library, shelves: Mapping[str, Library]) -> Facts:
    every = [library, *shelves.values()]
    texts = [words.text for each in every for words in (each.first, *each.others.values())]
    return {"texts": texts, "titles": [each.book.title for each in every]}


@stage("split")
def split(folder: Path, *, settings: ScenariosConfig) -> Facts:
    return {"kind": type(settings).__name__}


def spelt(word: str) -> str:
    return " ".join(word)


@stage("spelling")
def spelling(
    folder: Path, book: Book, *, again: int, cache: Annotated[Path, KeptBy(spelt)]
) -> Facts:
    """Spells a word once."""
    kept = cache / book.title
    found = kept.is_file()
    cache.mkdir(parents=True, exist_ok=True)
    kept.write_text(spelt(book.title))
    return {"found": found}


MOBY = Book("Moby")


def made_words(folder: Path, lines: list[str] | None = None, **other: object) -> Artifact:
    shop = Workshop(folder, (lines if lines is not None else []).append)
    return shop.make(words, **{"book": MOBY, "count": 2} | other)


def test_what_is_finished_is_found_again(tmp_path: Path) -> None:
    lines: list[str] = []
    first, again = (made_words(tmp_path, lines) for _ in range(2))
    assert first == again
    assert lines == [f"words: building {first.path.name}", f"words: found {first.path.name}"]
    assert (first / "words.txt").read_text() == "Moby Moby"


def test_other_settings_or_data_make_another_and_what_lies_aside_does_not(tmp_path: Path) -> None:
    first = made_words(tmp_path)
    assert made_words(tmp_path, count=3).path != first.path
    assert made_words(tmp_path, book=Book("Ahab")).path != first.path
    assert made_words(tmp_path, place="elsewhere").facts["place"] == "", "found, not made again"


def test_artefacts_are_opened_as_the_parameters_say(tmp_path: Path) -> None:
    first, other = made_words(tmp_path), made_words(tmp_path, book=Book("Ahab"))
    shop = Workshop(tmp_path)
    made = shop.make(letters, words=first, others={"a": other}, source=other, upper=True)
    assert (made / "letters.txt").read_text() == "MOBY MOBYAHAB AHAB"
    assert made.facts == {"from": other.path.name}
    manifest = json.loads((made / MANIFEST).read_text())
    assert manifest["inputs"] == {
        "words": first.hash,
        "others: a": other.hash,
        "source": other.hash,
    }
    assert manifest["config"] == {"upper": True}
    assert json.loads((first / MANIFEST).read_text())["data"] == {"book": "Moby"}
    changed = shop.make(letters, words=first, others={"a": first}, source=other, upper=True)
    assert changed.path != made.path


def test_what_belongs_together_is_one_parameter_and_all_of_it_counts(tmp_path: Path) -> None:
    first, other = made_words(tmp_path), made_words(tmp_path, book=Book("Ahab"))
    library = {"first": first, "others": {"a": other}, "book": MOBY}
    shop = Workshop(tmp_path)
    made = shop.make(read, library=library, shelves={"top": library})
    assert made.facts == {
        "texts": ["Moby Moby", "Ahab Ahab"] * 2,
        "titles": ["Moby", "Moby"],
    }
    assert made.manifest["inputs"] == {
        "library: first": first.hash,
        "library: others: a": other.hash,
        "shelves: top: first": first.hash,
        "shelves: top: others: a": other.hash,
    }
    assert made.manifest["data"] == {"library: book": "Moby", "shelves: top: book": "Moby"}
    for changed in ({"first": other}, {"others": {"a": first}}, {"book": Book("Ahab")}):
        assert shop.make(read, library=library, shelves={"top": library | changed}) != made
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'book'"):
        shop.make(read, library={"first": first, "others": {}}, shelves={})


def test_the_held_out_period_is_no_training_period_of_the_same_values(tmp_path: Path) -> None:
    training = ScenariosConfig(source="shadow_log", since=HeldOutConfig().since)
    judging = HeldOutConfig(**training.model_dump())
    assert training.model_dump() == judging.model_dump()
    kinds = [
        Workshop(tmp_path).make(split, settings=each).facts["kind"] for each in (training, judging)
    ]
    assert kinds == ["ScenariosConfig", "HeldOutConfig"]


def test_arguments_that_a_stage_does_not_take_are_refused(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    with pytest.raises(TypeError, match="missing a required argument: 'book'"):
        shop.make(words, count=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        shop.make(words, book=MOBY, count=1, colour="red")
    with pytest.raises(TypeError, match=r"stage words: book is str: no artefact, .* no hash\(\)"):
        shop.make(words, book="Moby", count=1)
    assert list(tmp_path.iterdir()) == []


def test_a_bar_is_opened_for_what_is_built_and_tells_of_which(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    @contextmanager
    def meter(title: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: seen.append((title, done))

    for _ in range(2):
        Workshop(tmp_path, meter=meter).make(words, "whales", book=MOBY, count=2)
    assert seen == [("words (whales)", 2)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """This module and what it imports, to be edited."""
    for package in ("app", "training"):
        shutil.copytree(
            ROOT / package, tmp_path / "tree" / package, ignore=shutil.ignore_patterns("*.pyc")
        )
    (tmp_path / "tree" / SELF).parent.mkdir(parents=True)
    shutil.copy(ROOT / SELF, tmp_path / "tree" / SELF)
    return tmp_path / "tree"


def edit(path: Path) -> None:
    path.write_text(path.read_text() + "# edited\n")


def test_other_code_builds_anew_beside_what_was_there(tree: Path, tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "shop", sources=Sources(tree))
    before = shop.make(words, book=MOBY, count=2)
    edit(tree / "training/arrays.py")
    after = Workshop(tmp_path / "shop", sources=Sources(tree)).make(words, book=MOBY, count=2)
    assert after.path != before.path
    assert (after / "words.txt").read_bytes() == (before / "words.txt").read_bytes()
    assert after.hash != before.hash, "what is made from it is made again"


def test_what_a_stage_keeps_outlives_other_settings_and_no_other_code(
    tree: Path, tmp_path: Path
) -> None:
    """The fault: a base pass under a new key held what the code before had read."""

    def found(again: int, version_of: Callable[[str], str] = installed) -> bool:
        shop = Workshop(tmp_path / "shop", sources=Sources(tree, version_of))
        return bool(shop.make(spelling, book=MOBY, again=again).facts["found"])

    assert [found(1), found(2)] == [False, True]
    edit(tree / "training/judging/report/arms.py")
    assert found(3), "nothing that spells imports it"
    edit(tree / "training/arrays.py")
    assert [found(4), found(5)] == [False, True]
    newer = {"numpy": "99"}
    assert [found(each, lambda name: newer.get(name) or installed(name)) for each in (6, 7)] == [
        False,
        True,
    ]


def test_a_person_may_adopt_what_other_code_made_and_nothing_else(
    tree: Path, tmp_path: Path
) -> None:
    before = Workshop(tmp_path / "shop", sources=Sources(tree)).make(words, book=MOBY, count=2)
    edit(tree / "training/arrays.py")
    lines: list[str] = []
    shop = Workshop(
        tmp_path / "shop", lines.append, adopt=[before.path.name], sources=Sources(tree)
    )
    assert shop.make(words, book=MOBY, count=2) == before
    assert lines == [f"words: adopted {before.path.name}"]
    other = shop.make(words, book=MOBY, count=3)
    assert other.path != before.path
    assert lines[1] == f"words: {before.path.name} is not adopted, its config differs"
    with pytest.raises(ArtifactError, match="no finished artefact"):
        Workshop(tmp_path / "shop", adopt=["words-0000"], sources=Sources(tree)).make(
            words, book=Book("Ahab"), count=2
        )
