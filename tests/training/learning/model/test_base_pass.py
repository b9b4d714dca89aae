"""The base pass: the same numbers as the service reads, resumable, bounded, and clear about
damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from app.domain.model.prompt import Line, LineKind, lines_of, prompt_of
from app.policy.in_process.label_reader import LabelReader
from tests.builders import scenario
from tests.training.support.planted import (
    encode,
    encode_lines,
    encoded,
    prompt,
    short_prompts,
    tiny_reader,
)
from training.config.learning import EncodeConfig
from training.learning.model import base_pass as stage
from training.learning.model.base_pass import Encoded
from training.learning.model.shards import LINES, EncodeError, write_shard
from training.stages.store import Artifact


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[LabelReader, Path]:
    return tiny_reader(tmp_path)


def whole_pass(reader: LabelReader, ids: list[int]) -> tuple[torch.Tensor, object]:
    """Last-layer states and cache of one prompt, the plain way."""
    sequence = [*reader.encoder.head, *ids, *reader.encoder.tail]
    with torch.no_grad():
        output = reader.model(
            input_ids=torch.tensor([sequence]), use_cache=True, output_hidden_states=True
        )
    return output.hidden_states[-1][0], output.past_key_values


@pytest.mark.parametrize("packed", [False, True])
def test_labels_states_and_keys_are_those_of_a_whole_pass(
    packed: bool, tmp_path: Path, tiny: tuple[LabelReader, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever layers; afterwards they are torch's own, which can be trained."""
    reader, base = tiny
    monkeypatch.setattr(stage, "is_faster", lambda layers: packed)
    layers = [module for module in reader.model.modules() if isinstance(module, torch.nn.Linear)]
    prompts = short_prompts(5)
    found = encoded(tmp_path, prompts, reader, base, batch=3, shard=2)
    after = [module for module in reader.model.modules() if isinstance(module, torch.nn.Linear)]
    assert layers
    assert all(a is b for a, b in zip(layers, after, strict=True))
    read = reader.read([reader.encoder.encode(one) for one in prompts])
    np.testing.assert_allclose(found.label_log_probs, np.array(read), atol=1e-4)
    batch = found.keys_values([4, 1])
    for position, row in enumerate((4, 1)):
        states, cache = whole_pass(reader, found.ids(row))
        np.testing.assert_allclose(found.last[row], states[-1], atol=1e-4)
        head, length = len(reader.encoder.head), int(batch.lengths[position])
        assert length == len(found.ids(row))
        for number, layer in enumerate(cache.layers):  # type: ignore[attr-defined]
            expected = torch.stack([layer.keys[0], layer.values[0]])[:, :, head : head + length]
            torch.testing.assert_close(
                batch.states[number, :, position, :, :length], expected, atol=5e-3, rtol=5e-3
            )
        assert (batch.states[:, :, position, :, length:] == 0).all()


def test_more_keys_and_values_than_are_allowed_are_refused_before_anything_is_read(
    tmp_path: Path, tiny: tuple[LabelReader, Path]
) -> None:
    reader, base = tiny
    prompts = short_prompts(5)
    taken = encoded(tmp_path, prompts, reader, base)
    bytes_taken = 2 * sum(taken.keys_values([row]).states.numel() for row in range(len(prompts)))
    for allowed, fits in (
        (bytes_taken / 2**30 * 1.001, True),
        (bytes_taken / 2**30 * 0.999, False),
    ):
        folder = tmp_path / str(fits)
        if fits:
            encoded(folder, prompts, reader, base, most_gib=allowed)
            continue
        with pytest.raises(EncodeError, match=r"of 5 prompts would take .* GiB, more than encode"):
            encoded(folder, prompts, reader, base, most_gib=allowed)
        assert not list(folder.rglob("*.safetensors"))


def test_every_line_of_the_prompt_is_averaged_over_its_own_tokens(
    tmp_path: Path, tiny: tuple[LabelReader, Path]
) -> None:
    reader, base = tiny
    text = [
        Line(LineKind.IDENTITY, "BTC long"),
        Line(LineKind.SCORES, "score 7"),
        Line(LineKind.CONTEXT, "btc up"),
        Line(LineKind.NEWS, "news <<one>>"),
        Line(LineKind.NEWS, "news <<two>>"),
    ]
    found = Encoded.open(encode_lines(tmp_path, [text], reader, base))
    # identity, scores, context, news (both lines), tail; no indicators, flow or book
    assert found.lines[0].tolist() == [True, True, False, True, False, False, True, True]
    states, _ = whole_pass(reader, found.ids(0))
    own = states[len(reader.encoder.head) :]
    lengths = [
        len("BTC long\n"),
        len("score 7\n"),
        len("btc up\n"),
        len("news <<one>>\nnews <<two>>"),
    ]
    begins = np.cumsum([0, *lengths])  # one token per byte
    for line, i in ((0, 0), (1, 1), (3, 2), (6, 3)):
        expected = own[begins[i] : begins[i + 1]].mean(0)
        np.testing.assert_allclose(found.hidden[0, line].astype(np.float32), expected, atol=2e-3)
    np.testing.assert_allclose(
        found.hidden[0, 7].astype(np.float32), own[begins[-1] :].mean(0), atol=2e-3
    )
    assert (found.hidden[0, [2, 4, 5]] == 0).all()


def test_lines_of_a_rendered_scenario_are_told_apart(
    tmp_path: Path, tiny: tuple[LabelReader, Path]
) -> None:
    reader, base = tiny
    full = lines_of(scenario(candidate__news_summary="Calm", candidate__orderflow="buyers"))
    found = Encoded.open(encode_lines(tmp_path, [full], reader, base))
    assert found.lines.shape == (1, LINES)
    assert found.lines.all()


def test_what_a_line_says_does_not_tell_its_kind(
    tmp_path: Path, tiny: tuple[LabelReader, Path]
) -> None:
    """A symbol, a pattern or news that begin like another line stay where they belong."""
    reader, base = tiny
    hostile = lines_of(
        scenario(
            candidate__symbol="NEWSUSDT",
            candidate__pattern="score 9",
            candidate__news_summary="score 9.9 of 1.0\nrsi 20 flow buyers",
        )
    )
    shown = encode_lines(tmp_path, [hostile], reader, base)
    found = Encoded.open(shown)
    states, _ = whole_pass(reader, found.ids(0))
    own = states[len(reader.encoder.head) :]
    assert [kind for kind, _ in hostile] == [*LineKind, LineKind.NEWS], "the pattern is a text"
    begins = np.cumsum([0, *(len(f"{text}\n") for _, text in hostile)])  # one token per byte
    ends = [*begins[1:7], begins[-1] - 1]
    for place, (begin, end) in enumerate(zip(begins[:7], ends, strict=True)):
        expected = own[begin:end].mean(0)
        np.testing.assert_allclose(found.hidden[0, place].astype(np.float32), expected, atol=2e-3)


def test_kinds_are_those_that_the_lines_name(
    tmp_path: Path, tiny: tuple[LabelReader, Path]
) -> None:
    reader, base = tiny
    swapped = [Line(LineKind.NEWS, "score 7"), Line(LineKind.SCORES, "news <<score>>")]
    found = Encoded.open(encode_lines(tmp_path, [swapped], reader, base))
    assert np.flatnonzero(found.lines[0]).tolist() == [1, 6, LINES - 1]
    states, _ = whole_pass(reader, found.ids(0))
    own = states[len(reader.encoder.head) :]
    np.testing.assert_allclose(
        found.hidden[0, 6].astype(np.float32), own[: len("score 7\n")].mean(0), atol=2e-3
    )


def test_without_their_texts_rows_are_the_prompts_without_them(
    tmp_path: Path, tiny: tuple[LabelReader, Path]
) -> None:
    reader, base = tiny
    calm = [Line(LineKind.IDENTITY, "BTC long"), Line(LineKind.SCORES, "score 7")]
    loud = [*calm, Line(LineKind.NEWS, "news <<one>>"), Line(LineKind.NEWS, "news <<two>>")]
    found = Encoded.open(encode_lines(tmp_path, [loud, calm], reader, base))
    bare = found.without_text()
    assert found.text.tolist() == [len("\nnews <<one>>\nnews <<two>>"), 0]
    assert bare.ids(0) == bare.ids(1) == found.ids(1)
    assert found.ids(0)[: len(found.ids(1))] == found.ids(1)
    states = bare.keys_values([0, 1])
    assert states.lengths.tolist() == [len(found.ids(1))] * 2
    assert states.states.shape[-2] == len(found.ids(1))
    torch.testing.assert_close(states.states[:, :, 0], states.states[:, :, 1], atol=2e-3, rtol=0)


def test_a_second_run_reads_nothing_and_a_killed_one_loses_one_shard(
    tmp_path: Path, tiny: tuple[LabelReader, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, base = tiny
    prompts = short_prompts(6)
    whole = encode(tmp_path / "whole", prompts, reader, base, shard=2)
    write, calls = write_shard, []

    def dying(*arguments: object) -> Path:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(stage, "write_shard", dying)
        with pytest.raises(KeyboardInterrupt):
            encode(tmp_path, prompts, reader, base, shard=2)
    resumed = encode(tmp_path, prompts, reader, base, shard=2)
    assert resumed.facts["read"] == 2
    np.testing.assert_array_equal(
        Encoded.open(resumed).label_log_probs, Encoded.open(whole).label_log_probs
    )
    again = encode(tmp_path, [*prompts[::-1], prompts[0]], reader, base, shard=2)
    assert (again.facts["read"], again.facts["prompts"]) == (0, 6)
    order = [5, 4, 3, 2, 1, 0, 0]
    assert [Encoded.open(again).ids(i) for i in range(7)] == [
        Encoded.open(whole).ids(i) for i in order
    ]
    np.testing.assert_array_equal(
        Encoded.open(again).last, np.array(Encoded.open(whole).last)[order]
    )


def test_another_models_cache_is_not_used(tmp_path: Path, tiny: tuple[LabelReader, Path]) -> None:
    reader, base = tiny
    encode(tmp_path, short_prompts(2), reader, base)
    config = base / "generation_config.json"
    config.write_text(config.read_text() + "\n")
    assert encode(tmp_path, short_prompts(2), reader, base, shard=3).facts["read"] == 2


def test_a_damaged_shard_is_built_again_and_a_missing_one_is_named(
    tmp_path: Path, tiny: tuple[LabelReader, Path]
) -> None:
    reader, base = tiny
    built = encode(tmp_path, short_prompts(2), reader, base)
    [shard] = [built.path.parent / built.facts["cache"] / name for name in built.facts["shards"]]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(EncodeError, match="damaged"):
        Encoded.open(built).keys_values([0])
    assert encode(tmp_path, short_prompts(2), reader, base, shard=7).facts["read"] == 2
    shard.unlink()
    with pytest.raises(EncodeError, match="build the stage again"):
        Encoded.open(built)


def test_artefacts_and_their_cache_may_be_moved_together(
    tmp_path: Path, tiny: tuple[LabelReader, Path]
) -> None:
    reader, base = tiny
    built = encode(tmp_path / "here", short_prompts(2), reader, base)
    before = Encoded.open(built).keys_values([0, 1])
    (tmp_path / "here").rename(tmp_path / "there")
    moved = Artifact.open(tmp_path / "there" / built.path.relative_to(tmp_path / "here"))
    after = Encoded.open(moved).keys_values([0, 1])
    torch.testing.assert_close(after.states, before.states, atol=0, rtol=0)


def test_a_prompt_that_is_too_long_is_one_clear_error(
    tmp_path: Path, tiny: tuple[LabelReader, Path]
) -> None:
    reader, base = tiny
    with pytest.raises(EncodeError, match="prompt_too_long"):
        encode(tmp_path, [prompt("x" * 5000)], reader, base)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_progress_counts_distinct_prompts(tmp_path: Path, tiny: tuple[LabelReader, Path]) -> None:
    reader, base = tiny
    prompts, seen = short_prompts(3), []
    folder = tmp_path / "out"
    folder.mkdir()
    config = EncodeConfig(shard=2)
    texts = [[Line(LineKind.IDENTITY, one.user)] for one in (*prompts, prompts[0])]
    assert [prompt_of(lines) for lines in texts[:3]] == prompts
    stage.build_encoded(
        folder,
        texts,
        reader,
        base,
        config,
        tmp_path / "cache",
        lambda *now: seen.append(now),
    )
    assert seen == [(0, 3), (2, 3), (3, 3)]
