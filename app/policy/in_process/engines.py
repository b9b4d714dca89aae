"""Which engine reads for a model that is served in this process: detected, tried, named in every
reading.

Training and calibration read by torch as it comes (`LabelReader.load`). What is served may be
multiplied otherwise, where that is as exact and faster here: this is tried when a model is loaded,
since processors differ and nobody knows the next one. An engine that fails, or says something
else, is not used, whatever was asked for.
"""

from __future__ import annotations

import math
from typing import Any

import structlog
import torch

from app.domain.decision import Engine
from app.policy.encoding import PromptEncoder
from app.policy.in_process import attention
from app.policy.in_process.label_reader import Ask, LabelReader, LogProbabilities
from app.policy.in_process.packed import is_faster, pack, put
from app.policy.options import BackendOptions

EQUAL_NATS = 1e-3
"""How far another engine in float32 may be off, in the log-probability of any label."""
log = structlog.get_logger()


def reader_by(options: BackendOptions, model: Any, encoder: PromptEncoder) -> LabelReader:
    """A reader of the model by the engine that is asked for; by `auto`, by the fastest here. From
    now on the model is the reader's."""
    plain = LabelReader(model, encoder)
    here = options.engine is not None or torch.backends.mkldnn.is_available()
    if options.engine is Engine.TORCH or not here:
        return plain
    try:
        packed = _packed_reader(plain, forced=options.engine is not None)
    except Exception as error:  # Whatever fails in another library: torch has just read.
        options.telemetry.engine_failed()
        log.error("an engine fails here, torch reads in its place", error=str(error)[:500])
        return plain
    log.info("engine", engine=packed.engine)
    return packed


def _packed_reader(plain: LabelReader, forced: bool) -> LabelReader:
    """The same model by oneDNN; `plain` where that is no faster, unless it is forced. Raises what
    the library raises when it does not run, `RuntimeError` when it says something else; the model
    is then as it was."""
    model, encoder = plain.model, plain.encoder
    expected = _tried(plain)
    layers, usual = pack(model), model.config._attn_implementation
    joint = attention.NAME if usual == "sdpa" else usual  # Others compute what ours does not.
    try:
        if not layers or not (forced or is_faster(layers)):
            put(model, layers)
            return plain
        model.set_attn_implementation(joint)
        packed = LabelReader(model, encoder, Engine.ONEDNN)
        apart = _apart(_tried(packed), expected)
        if not apart <= EQUAL_NATS:  # NaN is no number that is near.
            raise RuntimeError(f"a label is {apart:.2g} nats from what torch says")
    except Exception:
        put(model, layers)
        model.set_attn_implementation(usual)
        raise
    return packed


def _tried(reader: LabelReader) -> list[LogProbabilities]:
    """What a reader says of an empty prompt in a whole pass, and of a short one, with and without
    its text, in a joint pass."""
    tail = reader.encoder.tail
    [joint] = reader.answer([Ask((*tail, *tail), (None,), text=len(tail) - 1)])
    return [*reader.read([tail]), *joint]


def _apart(found: list[LogProbabilities], expected: list[LogProbabilities]) -> float:
    rows = zip(found, expected, strict=True)
    gaps = [abs(a - b) for row, other in rows for a, b in zip(row, other, strict=True)]
    return math.nan if any(map(math.isnan, gaps)) else max(gaps)
