"""A whole model to be served, as it is built fastest: in plain torch where its shape is known, by
transformers where it is another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.policy.in_process.whole.contents import GENERATION_NAME, Contents, read_contents
from app.policy.in_process.whole.llama import Llama, Shape
from app.policy.versions.files import read_object, refusals


def load_to_serve(directory: Path) -> Any:
    """The model of a Hugging Face directory, in float32, every weight from a file and finite.
    Raises `ModelFileError`."""
    with refusals(f"{directory} holds no usable causal language model and"):
        contents = read_contents(directory)
        model = _llama(directory, contents)
        if model is not None:
            return model
        # Seconds of imports, for models that need them.
        from app.policy.in_process.whole.weights import build_model

        return build_model(directory, contents)


def _llama(directory: Path, contents: Contents) -> Llama | None:
    """None where it is not of that shape, whole and as the service knows it."""
    shape, path = Shape.of(contents.config), directory / GENERATION_NAME
    told = read_object(path) if path.is_file() else contents.config
    ends = told.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [end for end in [ends] if end is not None]
    if shape is None or not all(isinstance(end, int) for end in listed):
        return None
    return Llama.of(shape, contents.tensors, listed)
