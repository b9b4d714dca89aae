"""Numbers past the text: an adapter's map of features says in every pass what PEFT says of the same
embeddings; what does not fit is refused."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from app.domain.errors import ModelFileError
from app.domain.features import FEATURE_NAMES
from app.domain.model.actions import ACTIONS
from app.domain.model.prompt import (
    PROMPT_VERSION,
    SYSTEM,
    LineKind,
    Prompt,
    lines_of,
    prompt_of,
    render,
)
from app.domain.model.questions import QuestionName
from app.policy.in_process import label_reader
from app.policy.in_process.adapter import Adapter
from app.policy.in_process.batching import Batcher
from app.policy.in_process.label_reader import Ask, LabelReader
from app.policy.in_process.numbers import Known, Numbers, known_of, left_out_by
from app.policy.in_process.policy import TransformersPolicy
from app.policy.in_process.whole.weights import load_model
from app.policy.options import BackendOptions
from app.policy.scripted import SCRIPTED_MANIFEST
from app.policy.versions.store import NUMBERS_NAME
from tests.domain.scenarios import scenario
from tests.policy.peft_reading import activated, assert_agree, assert_differ, ids_of
from tests.policy.tiny_models import POSITIONS, TINY, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

NAMES = ("rsi", "adx")
RISING: Known = tuple({"rsi": 70.0, "adx": 30.0}.get(name) for name in FEATURE_NAMES)
FALLING: Known = tuple({"rsi": 25.0}.get(name) for name in FEATURE_NAMES)
EMBEDDING = int(TINY["hidden_size"])


def numbers(tokens: int = 2) -> Numbers:
    weight = torch.randn(tokens, 2, EMBEDDING, generator=torch.Generator().manual_seed(3))
    return Numbers(torch.tensor([50.0, 20.0]), torch.tensor([10.0, 5.0]), weight, NAMES)


def reading(reader: LabelReader, folder: Path, tokens: int = 2) -> Adapter:
    """An adapter that reads numbers."""
    directory = save_adapter(folder / "numbers", reader.model, reader.encoder.tail, 1)
    numbers(tokens).save(directory)
    return Adapter.load(directory, reader.model, reader.encoder.tail)


def peft_says(
    directory: Path, adapter: Path, reader: LabelReader, ids: tuple[int, ...], known: Known
) -> torch.Tensor:
    """By PEFT, of the whole prompt's embeddings with the map's added to the tail's first."""
    model = PeftModel.from_pretrained(load_model(directory), str(adapter)).eval()
    shift = numbers().of(known)
    whole = torch.tensor([[*reader.encoder.head, *ids]])
    begin = whole.shape[1] - len(reader.encoder.tail)
    with torch.inference_mode():
        embeddings = model.get_base_model().get_input_embeddings()(whole).clone()
        embeddings[0, begin : begin + len(shift)] += shift
        logits = model(
            inputs_embeds=embeddings, alora_offsets=[len(reader.encoder.tail)], use_cache=False
        ).logits[0, -1]
    return torch.log_softmax(logits.float(), -1)[list(reader.encoder.label_ids)]


def test_a_feature_adds_its_distance_from_the_mean_and_an_unknown_one_nothing() -> None:
    weight = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 0.5]]])
    made = Numbers(torch.tensor([50.0, 20.0]), torch.tensor([10.0, 5.0]), weight, NAMES)
    assert made.of(RISING).tolist() == [[2.0, 2.0], [4.0, 1.0]]
    assert made.of(FALLING).tolist() == [[-2.5, 0.0], [-5.0, 0.0]]
    far: Known = tuple(1e30 if name == "rsi" else None for name in FEATURE_NAMES)
    assert made.of(far).tolist() == [[4.0, 0.0], [8.0, 0.0]], "no number moves it further"


def test_a_scenarios_features_are_known_or_none() -> None:
    known = known_of(scenario(candidate__rsi=61.5, candidate__adx=None))
    assert known[FEATURE_NAMES.index("rsi")] == 61.5
    assert known[FEATURE_NAMES.index("adx")] is None
    assert known_of(None) == ()


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "one by one"])
def test_it_says_what_peft_says_beside_versions_that_read_the_text_alone(
    fresh: LabelReader, tiny_directory: Path, tmp_path: Path, together: bool
) -> None:
    reads, plain = reading(fresh, tmp_path), activated(fresh, tmp_path, 2)
    calm, loud = "BTC long", "ETH short of a deal\nnews <<up it goes>>"
    prompt = Prompt(PROMPT_VERSION, SYSTEM, loud)
    first, second, bare = ids_of(fresh, [calm, loud, prompt.before])

    def expected(ids: tuple[int, ...], known: Known) -> torch.Tensor:
        return peft_says(tiny_directory, tmp_path / "numbers", fresh, ids, known)

    asks = [
        Ask(first, (plain, reads), numbers=RISING),
        Ask(first, (reads,), numbers=FALLING),
        Ask(second, (reads,), fresh.encoder.text_tokens(prompt), tuple(QuestionName), RISING),
    ]
    for _ in ("computed", "from the kept trunks"):
        found = fresh.answer(asks) if together else [fresh.answer([ask])[0] for ask in asks]
        assert_agree(found[0][1], expected(first, RISING))
        assert_agree(found[1][0], expected(first, FALLING))
        assert_agree(found[2][0][:10], expected(second, RISING))
        assert_agree(found[2][1][:10], expected(bare, RISING))
        assert_differ(found[0][1], found[1][0])
        [[alone]] = LabelReader.load(tiny_directory, POSITIONS).answer([Ask(first, (plain,))])
        assert_agree(found[0][0], torch.tensor(alone))


def test_words_follow_the_numbers_however_the_prompt_is_cut(
    fresh: LabelReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tail begins within a step, at its end, or in a step of its own."""
    adapter = reading(fresh, tmp_path, tokens=3)
    prompt = Prompt(PROMPT_VERSION, SYSTEM, "BTC long")
    ids = fresh.encoder.encode_explanation(prompt, ACTIONS[3])
    user = len(fresh.encoder.encode(prompt)) - len(fresh.encoder.tail)

    def kept(step: int, known: Known) -> torch.Tensor:
        monkeypatch.setattr(label_reader, "PREFILL_TOKENS", step)
        text = fresh.begin(ids, adapter, user, known)
        while not text.generated:
            fresh.advance(text)
        return torch.cat([layer.values for layer in text.cache.layers])

    whole = kept(len(ids), RISING)
    for step in (1, user - 1, user, user + 1):
        torch.testing.assert_close(kept(step, RISING), whole, atol=1e-4, rtol=0)
    assert_differ(kept(len(ids), ()), whole)


async def test_one_prompt_of_two_scenarios_is_read_for_each(
    fresh: LabelReader, tmp_path: Path
) -> None:
    """What the prompt rounds away, the numbers may tell apart."""
    adapter = reading(fresh, tmp_path)
    policy = TransformersPolicy(
        Batcher(fresh, BackendOptions(max_batch=8)), SCRIPTED_MANIFEST, adapter
    )
    prompt = Prompt(PROMPT_VERSION, SYSTEM, "BTC long")
    [ids] = ids_of(fresh, ["BTC long"])
    told = [scenario(candidate__rsi=value) for value in (20.0, 80.0)]
    deadline = time.monotonic() + 60
    both = await asyncio.gather(*(policy.decide(prompt, deadline, one) for one in told))
    unknown = await policy.decide(prompt, deadline)
    for read, one in zip((*both, unknown), (*told, None), strict=True):
        [[alone]] = fresh.answer([Ask(ids, (adapter,), numbers=known_of(one))])
        assert_agree(read.log_probabilities, torch.tensor(alone))
    assert_differ(both[0].log_probabilities, both[1].log_probabilities)
    await policy.aclose()


def test_a_version_whose_numbers_overflow_is_refused_and_spoils_no_other(
    fresh: LabelReader, tiny_directory: Path, tmp_path: Path
) -> None:
    plain, adapter = activated(fresh, tmp_path, 2), reading(fresh, tmp_path)
    directory = tmp_path / "numbers"
    changed(lambda it: it["weight"].fill_(3e38))(directory / NUMBERS_NAME)
    broken = Adapter.load(directory, fresh.model, fresh.encoder.tail)
    batcher = Batcher(fresh, BackendOptions())
    batcher.try_out(adapter)
    with pytest.raises(ModelFileError, match="numbers that are not finite"):
        batcher.try_out(broken)
    [ids] = ids_of(fresh, ["BTC long"])
    [[alone]] = LabelReader.load(tiny_directory, POSITIONS).answer([Ask(ids, (plain,))])
    [[beside, overflown]] = fresh.answer([Ask(ids, (plain, broken), numbers=RISING)])
    assert not any(map(math.isfinite, overflown))
    assert_agree(beside, torch.tensor(alone))


async def test_lines_that_the_numbers_say_are_not_read(fresh: LabelReader, tmp_path: Path) -> None:
    """A version beside it reads them as ever."""
    directory = save_adapter(tmp_path / "numbers", fresh.model, fresh.encoder.tail, 1)
    given, left_out = numbers(), {LineKind.SCORES, LineKind.BOOK}
    Numbers(given.mean, given.scale, given.weight, NAMES, left_out).save(directory)
    adapter = Adapter.load(directory, fresh.model, fresh.encoder.tail)
    assert adapter.numbers is not None
    assert adapter.numbers.left_out == left_out_by(directory) == left_out
    batcher = Batcher(fresh, BackendOptions(max_batch=8))
    policy = TransformersPolicy(batcher, SCRIPTED_MANIFEST, adapter)
    whole = TransformersPolicy(batcher, SCRIPTED_MANIFEST)
    told = scenario(candidate__news_summary="Calm waters")
    prompt = render(told)
    lines = [line for line in lines_of(told) if line.kind not in left_out]
    shorter = prompt_of(lines)
    assert len(shorter.user) < len(prompt.user)
    assert shorter.texts == prompt.texts != ()
    deadline = time.monotonic() + 60
    read, beside = await asyncio.gather(
        policy.decide(prompt, deadline, told), whole.decide(prompt, deadline, told)
    )
    for said, its, text in ((read, adapter, shorter), (beside, None, prompt)):
        ask = Ask(
            fresh.encoder.encode(text),
            (its,),
            fresh.encoder.text_tokens(text),
            numbers=known_of(told),
        )
        [[expected, bare]] = fresh.answer([ask])
        assert_agree(said.log_probabilities, torch.tensor(expected))
        assert said.without_text is not None
        assert_agree(said.without_text, torch.tensor(bare))
    await policy.aclose()
    await whole.aclose()


def changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors = dict(load_file(path))
        change(tensors)
        save_file(tensors, path, {"features": json.dumps(NAMES)})

    return apply


NO_FEATURE = {
    "mean": torch.zeros(0),
    "scale": torch.zeros(0),
    "weight": torch.zeros(2, 0, EMBEDDING),
}


def metadata(left_out: str) -> dict[str, str]:
    return {"features": json.dumps(NAMES), "left_out": json.dumps([left_out])}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"\x10"), "cannot be read"),
        (lambda path: save_file(load_file(path), path), "cannot be read"),
        (lambda path: save_file({}, path, {"features": '["rsi"]'}), "it is no map"),
        (lambda path: save_file(load_file(path), path, {"features": '["rsi", "x"]'}), "features x"),
        (lambda path: save_file(load_file(path), path, {"features": '["rsi"]'}), "do not fit"),
        (lambda path: save_file(load_file(path), path, {"features": '[["rsi"], 1]'}), "features"),
        (lambda path: save_file(load_file(path), path, {"features": "1"}), "cannot be read"),
        (changed(lambda it: it.update(weight=torch.zeros(99, 2, EMBEDDING))), "do not fit"),
        (changed(lambda it: it.update(weight=torch.zeros(0, 2, EMBEDDING))), "do not fit"),
        (changed(lambda it: it.update(weight=torch.zeros(2, 2, 3))), "do not fit"),
        (changed(lambda it: it.update(weight=torch.zeros(2, 2))), "do not fit"),
        (changed(lambda it: it.update(scale=torch.tensor([1.0, 0.0]))), "a scale of 0"),
        (changed(lambda it: it.update(mean=torch.tensor([1.0, float("nan")]))), "not finite"),
        (changed(lambda it: it["weight"].fill_(float("inf"))), "not finite"),
        (lambda path: save_file(load_file(path), path, metadata("news")), "news cannot be left"),
        (lambda path: save_file(load_file(path), path, metadata("tea")), "tea cannot be left"),
        (lambda path: save_file(NO_FEATURE, path, {"features": "[]"}), "no feature"),
        (lambda path: save_file(load_file(path), path, {"features": '["rsi", "rsi"]'}), "twice"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(
    tiny: LabelReader, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    directory = save_adapter(tmp_path / "numbers", tiny.model, tiny.encoder.tail, 1)
    numbers().save(directory)
    damage(directory / NUMBERS_NAME)
    with pytest.raises(ModelFileError, match=message):
        Adapter.load(directory, tiny.model, tiny.encoder.tail)


def test_an_ordinary_adapter_reads_no_numbers(tiny: LabelReader, tmp_path: Path) -> None:
    directory = save_adapter(tmp_path / "ordinary", tiny.model, None, 1)
    numbers().save(directory)
    with pytest.raises(ModelFileError, match="ordinary adapter reads no numbers"):
        Adapter.load(directory, tiny.model, tiny.encoder.tail)
