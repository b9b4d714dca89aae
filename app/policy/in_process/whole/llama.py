"""Models of Llama's shape (Touvron et al. 2023, arXiv:2302.13971) in plain torch.

transformers takes longer to import than such a model takes to load, so a service that reads one
goes without it. The operations are those of its `LlamaForCausalLM` with its attention by
`scaled_dot_product_attention`, in the same order: a test finds the same bits. So are the names of
modules, methods and arguments: who reads does not ask whose model it has. Training, and every
model that `Shape.of` does not know whole, is transformers' (`weights`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.policy.in_process import attention

WIDEST_HEAD = 256
"""Of wider ones torch shares no keys by itself."""
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_READ = {
    *_SIZES,
    "attention_bias",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "mlp_bias",
    "model_type",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_interleaved",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
}
_WITHOUT_EFFECT = {
    "_from_model_config",
    "_model_name_or_path",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "initializer_range",
    "is_llama_config",
    "pad_token_id",
    "pretraining_tp",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "use_cache",
}
"""They say who wrote it, matter in training only, or are about texts that others write."""


class Shape(NamedTuple):
    """What a configuration says of a model of this shape."""

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head: int
    epsilon: float
    theta: float
    tied: bool
    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape | None:
        """None of every configuration that says more or something else, also of a wrong one."""
        said = {name for name, value in config.items() if value is not None}
        sizes = [config.get(name) for name in _SIZES]
        theta = _theta(config)
        plain = (
            said <= _READ | _WITHOUT_EFFECT
            and config.get("model_type") == "llama"
            and config.get("hidden_act", "silu") == "silu"
            and not config.get("rope_interleaved")
            and all(map(_is_size, sizes))
        )
        if not plain or theta is None:
            return None
        vocabulary, hidden, inner, layers, heads, _ = (int(size or 0) for size in sizes)
        key_heads = _or(config.get("num_key_value_heads"), heads)
        head = _or(config.get("head_dim"), hidden // heads)
        epsilon = _or(config.get("rms_norm_eps"), 1e-6)
        switches = [
            _or(config.get(name), False)
            for name in ("tie_word_embeddings", "attention_bias", "mlp_bias")
        ]
        fits = (
            _is_size(key_heads)
            and _is_size(head)
            and hidden % heads == heads % key_heads == head % 2 == 0
            and head <= WIDEST_HEAD
            and _is_positive(epsilon)
            and all(isinstance(switch, bool) for switch in switches)
        )
        if not fits:
            return None
        return cls(
            vocabulary, hidden, inner, layers, heads, key_heads, head, epsilon, theta, *switches
        )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_positive(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0


def _theta(config: Mapping[str, Any]) -> float | None:
    """The base of rotary positions, as newer and older files say it; None where they are stretched,
    or nothing is said."""
    if config.get("rope_scaling") is not None:
        return None
    told = config.get("rope_parameters")
    if told is None:
        told = {"rope_theta": config.get("rope_theta")}
    elif "rope_theta" in config:
        return None
    if not isinstance(told, dict) or told.keys() - {"rope_theta", "rope_type"}:
        return None
    theta: Any = told.get("rope_theta")
    usual = told.get("rope_type", "default") == "default"
    return float(theta) if usual and (_is_size(theta) or _is_positive(theta)) else None


class KeysValues:
    """What a layer keeps of the tokens it has read: (rows, heads of keys, tokens, size) each. It
    never writes into a tensor that it holds."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Those of all tokens, with these behind."""
        if self.keys is None or self.values is None:
            self.keys, self.values = keys.contiguous(), values.contiguous()
        else:
            self.keys = torch.cat([self.keys, keys], dim=-2)
            self.values = torch.cat([self.values, values], dim=-2)
        return self.keys, self.values


class Cache:
    """The layers' keys and values."""

    def __init__(self, layers: int) -> None:
        self.layers = [KeysValues() for _ in range(layers)]

    @property
    def tokens(self) -> int:
        """How many have been read."""
        keys = self.layers[0].keys
        return 0 if keys is None else keys.shape[-2]


class States(NamedTuple):
    """What the trunk says: the last layer's states (rows, tokens, hidden)."""

    last_hidden_state: Tensor
    past_key_values: Cache


class Output(NamedTuple):
    """What the model says: (rows, tokens that were asked for, vocabulary)."""

    logits: Tensor
    past_key_values: Cache


Angles = tuple[Tensor, Tensor]
"""Cosines and sines of positions, each (rows, 1, tokens, size of a head); the sines of the first
half are negative, since what they turn is subtracted."""


def _linear(inputs: int, outputs: int, bias: bool) -> nn.Linear:
    """A layer without weights. By itself torch makes them up, and where it need not, on its device
    `meta`, its compiler comes along."""
    layer = nn.Linear(1, 1, bias)
    layer.in_features, layer.out_features = inputs, outputs
    return layer


def _embedding(words: int, size: int) -> nn.Embedding:
    """As `_linear`."""
    layer = nn.Embedding(1, 1)
    layer.num_embeddings, layer.embedding_dim = words, size
    return layer


class _Norm(nn.Module):
    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.size = size
        self._epsilon = epsilon

    def forward(self, states: Tensor) -> Tensor:
        variance = states.pow(2).mean(-1, keepdim=True)
        return (states * variance.add_(self._epsilon).rsqrt_()).mul_(self.weight)


class _Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._size = shape.head
        whole, shared = shape.heads * shape.head, shape.key_heads * shape.head
        self.q_proj = _linear(shape.hidden, whole, shape.attention_bias)
        self.k_proj = _linear(shape.hidden, shared, shape.attention_bias)
        self.v_proj = _linear(shape.hidden, shared, shape.attention_bias)
        self.o_proj = _linear(whole, shape.hidden, shape.attention_bias)

    def forward(
        self,
        states: Tensor,
        angles: Angles,
        mask: Tensor | None,
        kept: KeysValues,
        attend: attention.Attend,
    ) -> Tensor:
        query, keys, values = (
            project(states).unflatten(-1, (-1, self._size)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        keys, values = kept.update(_turned(keys, angles), values)
        found = attend(_turned(query, angles), keys, values, mask, self._size**-0.5)
        said: Tensor = self.o_proj(found.flatten(-2))
        return said


class _Inner(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = _linear(shape.hidden, shape.inner, shape.mlp_bias)
        self.up_proj = _linear(shape.hidden, shape.inner, shape.mlp_bias)
        self.down_proj = _linear(shape.inner, shape.hidden, shape.mlp_bias)

    def forward(self, states: Tensor) -> Tensor:
        gate, up = self.gate_proj(states), self.up_proj(states)
        said: Tensor = self.down_proj(functional.silu(gate).mul_(up))
        return said


class _Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = _Attention(shape)
        self.mlp = _Inner(shape)
        self.input_layernorm = _Norm(shape.hidden, shape.epsilon)
        self.post_attention_layernorm = _Norm(shape.hidden, shape.epsilon)

    def forward(self, states: Tensor, *seeing: Any) -> Tensor:
        states = states + self.self_attn(self.input_layernorm(states), *seeing)
        said: Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return said


class Trunk(nn.Module):
    """Everything but the vocabulary's head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = _embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = _Norm(shape.hidden, shape.epsilon)
        self.attend: attention.Attend = attention.by_torch
        even = torch.arange(0, shape.head, 2, dtype=torch.float, device="cpu")
        self._frequencies = 1.0 / (shape.theta ** (even / shape.head))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = True,
    ) -> States:
        """As `Llama`."""
        states = self.embed_tokens(input_ids)
        cache = Cache(len(self.layers)) if past_key_values is None else past_key_values
        before, looking = cache.tokens, input_ids.shape[1]
        if position_ids is None:
            position_ids = torch.arange(before, before + looking)[None]
        if attention_mask is None:
            attention_mask = _past(looking, before)
        angles = self._angles(position_ids)
        for layer, kept in zip(self.layers, cache.layers, strict=True):
            states = layer(states, angles, attention_mask, kept, self.attend)
        return States(self.norm(states), cache)

    def _angles(self, positions: Tensor) -> Angles:
        turns = positions[..., None].float() * self._frequencies
        cos, sin = turns.cos()[:, None], turns.sin()[:, None]
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


class Configured:
    """How a model is set."""

    def __init__(self) -> None:
        self._attn_implementation = attention.SDPA


class Generation(NamedTuple):
    """Ids that end a text."""

    eos_token_id: list[int]


class Llama(nn.Module):
    """A causal language model in float32, for reading; `of` makes one."""

    def __init__(self, shape: Shape, ends: Sequence[int]) -> None:
        super().__init__()
        self.config = Configured()
        self.generation_config = Generation(list(ends))
        self.model = Trunk(shape)
        self.lm_head = _linear(shape.hidden, shape.vocabulary, bias=False)

    @classmethod
    def of(cls, shape: Shape, tensors: Mapping[str, Tensor], ends: Sequence[int]) -> Llama | None:
        """With these weights, which it takes as they lie; None where they are not its own, by name
        and shape."""
        model = cls(shape, ends)
        wanted = dict(_weights_of(model))
        if shape.tied:
            del wanted["lm_head.weight"]
        if wanted != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
            return None
        for name, tensor in tensors.items():
            path, _, last = name.rpartition(".")
            weight = nn.Parameter(tensor.float(), requires_grad=False)
            setattr(model.get_submodule(path), last, weight)
        if shape.tied:
            model.lm_head.weight = model.model.embed_tokens.weight
        return model.eval()

    @property
    def base_model(self) -> Trunk:
        """Everything but the vocabulary's head."""
        return self.model

    def get_input_embeddings(self) -> nn.Embedding:
        """The vocabulary's vectors."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """The vocabulary's head."""
        return self.lm_head

    def set_attn_implementation(self, name: str) -> None:
        """Attend by torch (`attention.SDPA`) or by oneDNN (`attention.NAME`)."""
        self.model.attend = {
            attention.SDPA: attention.by_torch,
            attention.NAME: attention.by_onednn,
        }[name]
        self.config._attn_implementation = name

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = True,
        logits_to_keep: int | Tensor = 0,
    ) -> Output:
        """Read tokens behind those of a cache, which grows.

        Parameters
        ----------
        input_ids : (rows, tokens).
        attention_mask : (rows, 1, tokens, all tokens), added to scores; by default each token sees
            what stands before it.
        position_ids : as the ids, from 0; by default they follow those before.
        use_cache : whether the caller will want the cache; it is kept in any case.
        logits_to_keep : how many last tokens have their logits said, 0 for all; or which tokens.
        """
        states, cache = self.model(input_ids, attention_mask, position_ids, past_key_values)
        wanted = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return Output(self.lm_head(states[:, wanted]), cache)


def _weights_of(model: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every weight's name and shape."""
    for path, module in model.named_modules():
        match module:
            case nn.Linear():
                yield f"{path}.weight", (module.out_features, module.in_features)
                if module.bias is not None:
                    yield f"{path}.bias", (module.out_features,)
            case nn.Embedding():
                yield f"{path}.weight", (module.num_embeddings, module.embedding_dim)
            case _Norm():
                yield f"{path}.weight", (module.size,)


def _past(looking: int, before: int) -> Tensor | None:
    """(1, 1, tokens, all tokens) whether one sees another, where torch does not know it by
    itself."""
    if looking == 1 or before == 0:
        return None
    return (torch.arange(before + looking) <= torch.arange(before, before + looking)[:, None])[
        None, None
    ]


def _turned(states: Tensor, angles: Angles) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864)."""
    cos, sin = angles
    left, right = states.chunk(2, dim=-1)
    return (states * cos).add_(torch.cat((right, left), dim=-1).mul_(sin))
