"""Which engine reads for a model that is served in this process: detected, tried, named in every
reading.

Training and calibration read by torch as it comes (`LabelReader.load`), the base pass by packed
layers as well. What is served may be multiplied otherwise, where that is as exact and faster here:
this is tried when a model is loaded, since processors differ and nobody knows the next one. An
engine that fails, or says something else, is not used, whatever was asked for.
"""

from __future__ import annotations

from typing import Any

import structlog
import torch

from app.domain.record.decision import Engine
from app.policy.encoding import PromptEncoder
from app.policy.in_process import attention
from app.policy.in_process.certificate import kind_here
from app.policy.in_process.label_reader import LabelReader
from app.policy.in_process.packed import has_onednn, is_faster, packing, put, roughen
from app.policy.options import BackendOptions

EQUAL_NATS = 1e-3
"""How far another engine in float32 may be off, in the log-probability of any token."""
ROUGH_NATS = 1.0
"""How far bfloat16 may be off before certificates are asked: more is no reading at all."""
log = structlog.get_logger()


def reader_by(options: BackendOptions, model: Any, encoder: PromptEncoder) -> LabelReader:
    """A reader of the model by the engine that is asked for; by `auto`, by the fastest here. From
    now on the model is the reader's."""
    engine = Engine.TORCH
    here = options.engine is not None or has_onednn()
    if options.engine is not Engine.TORCH and here:
        try:
            engine = _packed(model, encoder.tail, forced=options.engine is not None)
        except Exception as error:  # Whatever fails in another library: torch can read.
            options.telemetry.engine_failed()
            log.error("an engine fails here, torch reads in its place", error=str(error)[:500])
    log.info("engine", engine=engine)
    return LabelReader(model, encoder, engine)


def _packed(model: Any, ids: tuple[int, ...], forced: bool) -> Engine:
    """Pack the model, unless that is no faster and not forced; what reads it from now on. Raises
    what the library raises when it does not run on these ids, `RuntimeError` when it says something
    else; the model is then as it was."""
    usual = model.config._attn_implementation
    with packing(model) as layers:
        expected = _tried(model, ids)
    try:
        if not layers or not (forced or is_faster(layers)):
            put(model, layers)
            return Engine.TORCH
        if usual == "sdpa":  # Others compute what ours does not.
            model.set_attn_implementation(attention.NAME)
        apart = float((_tried(model, ids) - expected).abs().max())
        if not apart <= EQUAL_NATS:  # NaN is no number that is near.
            raise RuntimeError(f"a token is {apart:.2g} nats from what torch says")
    except Exception:
        put(model, layers)
        model.set_attn_implementation(usual)
        raise
    return Engine.ONEDNN


def read_roughly(options: BackendOptions, reader: LabelReader) -> bool:
    """Have a reader able to read roughly, where this processor multiplies bfloat16 faster; a second
    copy of the weights, of half the size. Whether it can."""
    fits = reader.engine is Engine.ONEDNN and kind_here() is not None and reader.keeps_trunks
    if reader.rough is not None or not fits:
        return reader.rough is not None
    try:
        switch = roughen(reader.model)
        if switch is None:
            return False
        exact = _tried(reader.model, reader.encoder.tail)
        with switch.roughly():
            apart = float((_tried(reader.model, reader.encoder.tail) - exact).abs().max())
        if not apart <= ROUGH_NATS:
            raise RuntimeError(f"a token is {apart:.2g} nats from what float32 says")
    except Exception as error:  # As above: what reads exactly goes on.
        options.telemetry.engine_failed()
        log.error("bfloat16 fails here, float32 reads alone", error=str(error)[:500])
        return False
    reader.rough = switch
    log.info("prompts can be read roughly", kind=kind_here())
    return True


def _tried(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities of all tokens after these ids: as whole passes read, and with a mask, as
    joint passes do."""
    hidden = torch.full((len(ids), len(ids)), torch.finfo(torch.float32).min).triu(1)
    masked = {"attention_mask": hidden[None, None], "position_ids": torch.arange(len(ids))[None]}
    with torch.inference_mode():
        said = [
            model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=1, **how).logits
            for how in ({}, masked)
        ]
        return torch.log_softmax(torch.cat(said), -1)
