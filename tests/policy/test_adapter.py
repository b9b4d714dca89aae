"""Adapters read without PEFT say what PEFT says; several over one base model share its pass;
misfits are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import MistralConfig

from app.domain.errors import ModelFileError
from app.domain.model.actions import ACTIONS
from app.domain.model.prompt import PROMPT_VERSION, SYSTEM, Prompt
from app.domain.model.questions import QuestionName
from app.policy.calibration import random_prompts
from app.policy.in_process.adapter import Adapter
from app.policy.in_process.label_reader import Ask, LabelReader
from app.policy.in_process.reading.trunks import TRUNKS
from app.policy.in_process.whole.weights import load_model
from tests.policy.peft_reading import (
    TEXTS,
    activated,
    assert_agree,
    assert_differ,
    change_config,
    ids_of,
    peft_says,
)
from tests.policy.tiny_models import POSITIONS, TINY, save_adapter, save_tiny_model

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning"
)  # PEFT's own


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "one by one"])
def test_two_adapters_and_the_base_say_what_peft_says_with_a_shared_trunk(
    fresh: LabelReader, tiny_directory: Path, tmp_path: Path, together: bool
) -> None:
    one, two = activated(fresh, tmp_path, 1), activated(fresh, tmp_path, 2)
    rows = ids_of(fresh)
    expected = [
        peft_says(tiny_directory, tmp_path / "adapter-1", fresh, rows),
        torch.tensor(fresh.read(rows)),
        peft_says(tiny_directory, tmp_path / "adapter-2", fresh, rows),
    ]
    assert_differ(expected[0], expected[1])
    assert_differ(expected[0], expected[2])
    asks = [Ask(ids, (one, None, two)) for ids in rows]
    for _ in ("computed", "from the kept trunks"):
        found = fresh.answer(asks) if together else [fresh.answer([ask])[0] for ask in asks]
        for number, version in enumerate(expected):
            assert_agree([row[number] for row in found], version)
    assert_agree(fresh.read(rows), expected[1])


def test_a_text_part_is_read_with_and_without_in_one_pass(
    fresh: LabelReader, tiny_directory: Path, tmp_path: Path
) -> None:
    one, two = activated(fresh, tmp_path, 1), activated(fresh, tmp_path, 2)
    texts = ["BTC long\nnews <<up it goes>>", "ETH", "SOL short of a good deal\nnews <<no>>"]
    rows = ids_of(fresh, texts)
    prompts = [Prompt(PROMPT_VERSION, SYSTEM, text) for text in texts]
    lengths = [fresh.encoder.text_tokens(prompt) for prompt in prompts]
    assert [length > 0 for length in lengths] == [True, False, True]
    bare = ids_of(fresh, [prompt.before for prompt in prompts])
    (ones, twos), (bare_ones, bare_twos) = (
        [peft_says(tiny_directory, tmp_path / f"adapter-{seed}", fresh, them) for seed in (1, 2)]
        for them in (rows, bare)
    )
    assert_differ(ones[0], bare_ones[0])
    asks = [
        Ask(rows[0], (one, two), lengths[0]),
        Ask(rows[1], (two,), lengths[1]),
        Ask(rows[2], (one,), lengths[2]),
    ]
    expected = [
        [ones[0], twos[0], bare_ones[0], bare_twos[0]],
        [twos[1]],
        [ones[2], bare_ones[2]],
    ]
    for together in (True, False):
        for _ in ("computed", "from the kept trunks"):
            found = fresh.answer(asks) if together else [fresh.answer([ask])[0] for ask in asks]
            for got, want in zip(found, expected, strict=True):
                assert_agree(got, torch.stack(want))
        fresh = LabelReader.load(tiny_directory, POSITIONS)


ASKED = (QuestionName.WIN, QuestionName.STOPPED, QuestionName.RANGE)


def test_each_question_is_read_as_if_it_alone_followed_the_tail(
    fresh: LabelReader, tiny_directory: Path, tmp_path: Path
) -> None:
    """By PEFT, whole prompts: no other question, no other version, no batch changes an answer."""
    one, two = activated(fresh, tmp_path, 1), activated(fresh, tmp_path, 2)
    texts = ["BTC long\nnews <<up it goes>>", "ETH", "SOL short of a good deal\nnews <<no>>"]
    rows = ids_of(fresh, texts)
    prompts = [Prompt(PROMPT_VERSION, SYSTEM, text) for text in texts]
    lengths = [fresh.encoder.text_tokens(prompt) for prompt in prompts]
    bare = ids_of(fresh, [prompt.before for prompt in prompts])

    def expected(seed: int, ids: tuple[int, ...], asked: Sequence[QuestionName]) -> torch.Tensor:
        adapter = tmp_path / f"adapter-{seed}"
        tails = [fresh.encoder.question(name) for name in asked]
        labels = [fresh.encoder.label_ids, *(tail.label_ids for tail in tails)]
        asking = [ids, *((*ids, *tail.ids) for tail in tails)]
        return torch.cat(
            [
                peft_says(tiny_directory, adapter, fresh, [them], of)[0]
                for them, of in zip(asking, labels, strict=True)
            ]
        )

    asks = [
        Ask(rows[0], (one, two), lengths[0], ASKED),
        Ask(rows[1], (two,), lengths[1], ASKED[1:]),
        Ask(rows[2], (one,), lengths[2]),
    ]
    wanted = [
        [expected(seed, ids, ASKED) for ids in (rows[0], bare[0]) for seed in (1, 2)],
        [expected(2, rows[1], ASKED[1:])],
        [expected(1, rows[2], ()), expected(1, bare[2], ())],
    ]
    assert wanted[0][0].shape == (10 + 2 + 2 + 5,)
    assert_differ(wanted[0][0][10:12], wanted[0][0][12:14])
    for together in (True, False):
        for _ in ("computed", "from the kept trunks"):
            found = fresh.answer(asks) if together else [fresh.answer([ask])[0] for ask in asks]
            for got, want in zip(found, wanted, strict=True):
                assert_agree(got, torch.stack(want))
        fresh = LabelReader.load(tiny_directory, POSITIONS)


def test_questions_cost_their_own_tokens_and_an_older_version_none(
    fresh: LabelReader, tmp_path: Path
) -> None:
    adapter = activated(fresh, tmp_path, 1)
    widths: list[int] = []
    fresh.model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: widths.append(inputs[0].shape[1])
    )
    more = sum(len(fresh.encoder.question(name).ids) for name in ASKED)
    for text, questions, extra in (("BTC a", (), 0), ("BTC b", ASKED, more)):
        widths.clear()
        [ids] = ids_of(fresh, [text])
        fresh.answer([Ask(ids, (adapter,), 0, questions)])
        assert widths == [len(ids) + extra]


def test_a_text_part_costs_one_more_tail_and_no_text_nothing(
    fresh: LabelReader, tmp_path: Path
) -> None:
    adapter = activated(fresh, tmp_path, 1)
    widths: list[tuple[int, ...]] = []
    fresh.model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: widths.append(tuple(inputs[0].shape))
    )
    tail = len(fresh.encoder.tail)
    for version in (adapter, None):
        widths.clear()
        text = Prompt(PROMPT_VERSION, SYSTEM, f"BTC {version is None}\nnews <<up>>")
        [loud, calm] = ids_of(fresh, [text.user, text.before])
        fresh.answer([Ask(loud, (version,), fresh.encoder.text_tokens(text))])
        fresh.answer([Ask(calm, (version,))])
        assert widths == [(1, len(loud) + tail), (1, len(calm))]


def test_versions_that_differ_by_prompt_and_kept_trunks_mix_in_one_batch(
    fresh: LabelReader, tiny_directory: Path, tmp_path: Path
) -> None:
    one, two = activated(fresh, tmp_path, 1), activated(fresh, tmp_path, 2)
    rows = ids_of(fresh)
    first, second = (
        peft_says(tiny_directory, tmp_path / f"adapter-{seed}", fresh, rows) for seed in (1, 2)
    )
    base = torch.tensor(fresh.read(rows))
    fresh.answer([Ask(rows[2], (two,))])
    asks = [
        Ask(rows[0], (None,)),
        Ask(rows[1], (two, one)),
        Ask(rows[2], (one,)),
        Ask(rows[3], (None, two)),
    ]
    found = fresh.answer(asks)
    expected = [[base[0]], [second[1], first[1]], [first[2]], [base[3], second[3]]]
    for got, want in zip(found, expected, strict=True):
        assert_agree(got, torch.stack(want))


def test_a_further_version_costs_one_more_tail_and_a_kept_prompt_is_not_read_again(
    fresh: LabelReader, tmp_path: Path
) -> None:
    one, two = activated(fresh, tmp_path, 1), activated(fresh, tmp_path, 2)
    widths: list[tuple[int, ...]] = []
    embedding = fresh.model.get_input_embeddings()
    embedding.register_forward_hook(
        lambda module, inputs, output: widths.append(tuple(inputs[0].shape))
    )
    [ids] = ids_of(fresh, TEXTS[:1])
    tail = len(fresh.encoder.tail)
    fresh.answer([Ask(ids, (one, two, None))])
    assert widths == [(1, len(ids) + 2 * tail)]
    fresh.answer([Ask(ids, (two, one))])
    assert widths[1:] == [(2, tail)]
    text = fresh.begin(ids, one, len(ids) - tail)
    fresh.advance(text)
    assert widths[2:] == [(1, tail)]
    others = ids_of(fresh, [f"prompt {number}" for number in range(TRUNKS)])
    for other in others:
        fresh.answer([Ask(other, (one,))])
    widths.clear()
    fresh.answer([Ask(ids, (one,))])
    assert widths == [(1, len(ids))], "the oldest was forgotten"
    widths.clear()
    fresh.answer([Ask(other, (None,)) for other in ids_of(fresh, ["base", "alone"])])
    fresh.answer([Ask(other, (None,)) for other in ids_of(fresh, ["base"])])
    assert [shape[0] for shape in widths] == [2, 1], (
        "the base model alone takes one pass and keeps nothing"
    )


def test_a_model_with_sliding_windows_takes_a_whole_pass_for_each_version(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path / "model", MistralConfig(**TINY, sliding_window=48))
    reader = LabelReader.load(directory, POSITIONS)
    one, two = activated(reader, tmp_path, 1), activated(reader, tmp_path, 2)
    rows = ids_of(reader)
    found = reader.answer([Ask(ids, (one, None, two)) for ids in rows])
    for number, name in ((0, "adapter-1"), (2, "adapter-2")):
        assert_agree(
            [row[number] for row in found], peft_says(directory, tmp_path / name, reader, rows)
        )
    assert_agree([row[1] for row in found], torch.tensor(reader.read(rows)))
    loud = Prompt(PROMPT_VERSION, SYSTEM, "BTC\nnews <<up>>")
    both = reader.answer(
        [Ask(reader.encoder.encode(loud), (None,), reader.encoder.text_tokens(loud))]
    )
    assert_agree(both[0], torch.tensor(reader.read(ids_of(reader, [loud.user, loud.before]))))


@pytest.mark.parametrize("kept", [False, True], ids=["read anew", "over the kept trunk"])
def test_an_activated_adapter_stays_awake_while_it_explains(
    fresh: LabelReader, tiny_directory: Path, tmp_path: Path, kept: bool
) -> None:
    adapter = activated(fresh, tmp_path, 1)
    prompt = Prompt(PROMPT_VERSION, SYSTEM, "BTC long, " * 8)
    asked = fresh.encoder.encode(prompt)
    user = len(asked) - len(fresh.encoder.tail)
    assert user > 32, "more than one step"
    if kept:
        fresh.answer([Ask(asked, (adapter,))])
    ids = fresh.encoder.encode_explanation(prompt, ACTIONS[3])
    assert ids[: len(asked)] == asked, "the conversation goes on where the decision was read"
    text = fresh.begin(ids, adapter, user)
    while len(text.generated) < 6 and not text.finished:
        fresh.advance(text)
    assert text.generated
    model = PeftModel.from_pretrained(
        load_model(tiny_directory), str(tmp_path / "adapter-1")
    ).eval()
    sequence = [*fresh.encoder.head, *ids]
    for token in text.generated:
        awake = len(sequence) - len(fresh.encoder.head) - user
        with torch.inference_mode():
            logits = model(
                input_ids=torch.tensor([sequence]), alora_offsets=[awake], use_cache=False
            ).logits
        assert int(logits[0, -1].argmax()) == token
        sequence.append(token)


def test_smollm2_with_two_adapters_says_what_peft_says(
    smollm2_directory: Path, smollm2_encoder: Any, tmp_path: Path
) -> None:
    reader = LabelReader(load_model(smollm2_directory), smollm2_encoder)
    one, two = (
        Adapter.load(
            save_adapter(
                tmp_path / f"adapter-{seed}", reader.model, reader.encoder.tail, seed, scale=0.5
            ),
            reader.model,
            reader.encoder.tail,
        )
        for seed in (1, 2)
    )
    rows = [reader.encoder.encode(prompt) for prompt in random_prompts(2, seed=5)]
    rows.append(*ids_of(reader, ["BTC long"]))
    expected = [
        peft_says(smollm2_directory, tmp_path / f"adapter-{seed}", reader, rows) for seed in (1, 2)
    ]
    base = torch.tensor(reader.read(rows))
    assert_differ(expected[0], base)
    asks = [Ask(ids, (one, two, None)) for ids in rows]
    for found in (reader.answer(asks), [reader.answer([ask])[0] for ask in asks]):
        for number, version in enumerate((*expected, base)):
            assert_agree([row[number] for row in found], version)


def test_what_peft_saves_is_read_with_rank_stabilised_scaling_too(
    tiny_directory: Path, tmp_path: Path
) -> None:
    reader = LabelReader.load(tiny_directory, POSITIONS)
    config = LoraConfig(
        r=9,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["q_proj", "down_proj"],
        task_type="CAUSAL_LM",
        alora_invocation_tokens=list(reader.encoder.tail),
    )
    model = get_peft_model(load_model(tiny_directory), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    adapter = Adapter.load(tmp_path / "adapter", reader.model, reader.encoder.tail)
    assert adapter.activated
    assert len(adapter.deltas) == 4
    rows = ids_of(reader)
    expected = peft_says(tiny_directory, tmp_path / "adapter", reader, rows)
    assert_agree(
        [row[0] for row in reader.answer([Ask(ids, (adapter,)) for ids in rows])], expected
    )
    assert_differ(expected, reader.read(rows))


@pytest.fixture
def adapter_files(tiny: LabelReader, tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", tiny.model, tiny.encoder.tail)


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        path = directory / "adapter_model.safetensors"
        tensors = dict(load_file(path))
        change(tensors)
        save_file(tensors, path)

    return apply


K_A = "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"


def rename(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            tensors[key.replace(old, new)] = tensors.pop(key)

    return change


def put_terms_on_a_norm(directory: Path) -> None:
    change_config(target_modules=["norm"])(directory)
    change_tensors(rename("layers.0.self_attn.q_proj", "norm"))(directory)


MISFITS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another kind": (change_config(peft_type="IA3"), "peft_type is 'IA3'; only LORA"),
    "no kind": (change_config(peft_type=None), "peft_type is None"),
    "DoRA": (change_config(use_dora=True), "use_dora not supported"),
    "a bias": (change_config(bias="lora_only"), "bias not supported"),
    "ranks by layer": (change_config(rank_pattern={"q_proj": 2}), "rank_pattern not supported"),
    "whole modules": (change_config(modules_to_save=["lm_head"]), "modules_to_save not supported"),
    "a changed base": (change_config(init_lora_weights="pissa"), "init_lora_weights not supported"),
    "an option of a later PEFT": (change_config(use_magic=True), "use_magic not supported"),
    "another template": (change_config(alora_invocation_tokens=[1, 2]), "another chat template"),
    "no token ids": (
        change_config(alora_invocation_tokens="<|im_start|>"),
        "not a list of token ids",
    ),
    "no rank": (change_config(r=0), "r is 0, not a rank"),
    "no alpha": (change_config(lora_alpha="8"), "lora_alpha is '8', not a number"),
    "another rank": (change_config(r=8), "the base model needs"),
    "unknown targets": (change_config(target_modules=["q_proj", "c_attn"]), "no module c_attn"),
    "no JSON": (
        lambda path: (path / "adapter_config.json").unlink(),
        r"adapter_config\.json cannot be read",
    ),
    "no tensors": (
        lambda path: (path / "adapter_model.safetensors").unlink(),
        r"safetensors cannot be read",
    ),
    "cut bytes": (
        lambda path: (path / "adapter_model.safetensors").write_bytes(b"\x10"),
        r"safetensors cannot be read",
    ),
    "a missing layer": (
        change_tensors(
            lambda tensors: [tensors.pop(key) for key in list(tensors) if ".layers.1." in key]
        ),
        "it is cut short",
    ),
    "a missing side": (change_tensors(lambda tensors: tensors.pop(K_A)), "has terms of shape"),
    "another shape": (
        change_tensors(lambda tensors: tensors.update({K_A: torch.zeros(4, 3)})),
        "has terms of shape",
    ),
    "a term of another kind": (
        change_tensors(
            lambda tensors: tensors.update(
                {"base_model.model.lora_magnitude_vector": torch.ones(2)}
            )
        ),
        "is no term of a plain LoRA",
    ),
    "modules that are not there": (
        change_tensors(rename("layers.1", "layers.7")),
        "it is cut short",
    ),
    "a layer that is not linear": (
        put_terms_on_a_norm,
        "not a linear layer",
    ),
    "not a number": (
        change_tensors(lambda tensors: tensors.update({K_A: torch.full((4, 32), torch.nan)})),
        "not finite",
    ),
}


@pytest.mark.parametrize(("change", "message"), MISFITS.values(), ids=MISFITS)
def test_an_adapter_that_does_not_fit_is_refused_in_one_line(
    adapter_files: Path, tiny: LabelReader, change: Callable[[Path], object], message: str
) -> None:
    Adapter.load(adapter_files, tiny.model, tiny.encoder.tail)
    change(adapter_files)
    with pytest.raises(ModelFileError, match=message) as caught:
        Adapter.load(adapter_files, tiny.model, tiny.encoder.tail)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_the_output_layer_is_refused(tiny: LabelReader, tmp_path: Path) -> None:
    directory = save_adapter(tmp_path, tiny.model, tiny.encoder.tail, target_modules=["lm_head"])
    with pytest.raises(ModelFileError, match="lm_head is the output layer"):
        Adapter.load(directory, tiny.model, tiny.encoder.tail)
