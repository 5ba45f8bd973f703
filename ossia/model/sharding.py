"""Tensor and expert parallelism: a decoder's share for each process of a group.

A rank's share is a decoder too, of fewer heads and hidden units or experts, whose backend sums what
the ranks add to the residual stream (Shoeybi et al. 2019, Megatron-LM,
https://arxiv.org/abs/1909.08053). Embedding, norms, routers and unembedding are whole on each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from ossia.config import AttentionConfig, LayerConfig, ModelConfig, MoEConfig, Role
from ossia.config import ExpertFormat as Format
from ossia.model.attention import Attention
from ossia.model.decoder import Decoder, Layer
from ossia.model.linear import Experts, Linear
from ossia.ops import Backend
from ossia.ops.mxfp4 import BLOCK
from ossia.ops.ranks import OwnExperts, across, cut
from ossia.ops.weight import tensors_of

# The dimension of a matrix (rows, cols) that is divided: the rows of those that read the residual
# stream, and the columns of those that write to it.
_ROWS, _COLS = 0, 1


@dataclass(frozen=True)
class Rank:
    """One of `size` processes, counted from 0. whole_experts: it holds some experts as they are,
    not a part of each.
    """

    index: int
    size: int
    whole_experts: bool = False

    def share(self, count: int, unit: int = 1) -> slice:
        """Its part of `count` things, in whole units."""
        units = count // unit
        start, stop = (units * i // self.size for i in (self.index, self.index + 1))
        return slice(start * unit, stop * unit)


def check(config: ModelConfig, rank: Rank) -> None:
    """Raise ValueError, in one line, for a model that so many processes cannot share."""
    for layer in config.layers:
        feedforward = layer.feedforward
        heads, keys = layer.attention.num_heads, layer.attention.num_kv_heads
        if heads % rank.size:
            raise ValueError(f"{heads} heads do not divide among {rank.size} processes")
        if keys % rank.size and rank.size % keys:
            raise ValueError(f"{keys} heads of keys do not divide among {rank.size} processes")
        if isinstance(feedforward, MoEConfig) and rank.whole_experts:
            count, what = feedforward.num_experts, "experts"
        else:
            count = feedforward.intermediate_size // _unit(layer)
            what = "blocks of hidden units" if _unit(layer) > 1 else "hidden units"
        if count < rank.size:
            raise ValueError(f"{count} {what} are too few for {rank.size} processes")


def shard(decoder: Decoder, rank: Rank, ops: Backend, device: torch.device | str) -> Decoder:
    """A rank's share of a decoder, in eval mode on a device; `decoder` may be on the CPU, in mapped
    files. The group must exist before the share computes. Raises ValueError as `check` does.
    """
    check(decoder.config, rank)
    config = replace(
        decoder.config, layers=tuple(_layer_config(layer, rank) for layer in decoder.config.layers)
    )
    weights = dict(decoder.state_dict())
    for index, (layer, form) in enumerate(zip(decoder.layers, decoder.config.layers, strict=True)):
        for name, tensor in _layer_weights(cast(Layer, layer), form, rank).items():
            weights[f"layers.{index}.{name}"] = tensor
    with torch.device("meta"):
        part = Decoder(config, across(ops))
    stacks = _own_experts(part, rank) if rank.whole_experts else {}
    part.load_state_dict({n: t.to(device) for n, t in weights.items()}, assign=True)
    part.place()
    for name, module in stacks.items():
        own = module.value
        assert isinstance(own, OwnExperts)
        module.replace(replace(own, inner=ops.place(name, own.inner)))
    part.origin = decoder.origin
    return part.requires_grad_(False).eval()


def _own_experts(decoder: Decoder, rank: Rank) -> dict[str, Experts]:
    """Make the stacks of experts, of a decoder on the meta device, those of this rank alone."""
    stacks: dict[str, Experts] = {}
    for name, module in decoder.named_modules():
        if isinstance(module, Experts):
            stacks[name] = module
            share = rank.share(module.value.shape[0])
            inner = cut(module.value, 0, share)
            module.replace(OwnExperts(inner, share.start, module.value.shape[0]))
            if module.bias is not None:
                module.bias = nn.Parameter(module.bias[share])
    return stacks


def _unit(layer: LayerConfig) -> int:
    """Hidden units that stay together: a block of packed numbers."""
    feedforward = layer.feedforward
    packed = isinstance(feedforward, MoEConfig) and feedforward.format is Format.MXFP4
    return BLOCK if packed else 1


def _key_heads(attention: AttentionConfig, rank: Rank) -> slice:
    """A rank's heads of keys and values: more ranks than heads share one."""
    count = attention.num_kv_heads
    first = rank.index * count // rank.size
    return slice(first, first + max(1, count // rank.size))


def _length(part: slice) -> int:
    return part.stop - part.start


def _layer_config(layer: LayerConfig, rank: Rank) -> LayerConfig:
    attention, feedforward = layer.attention, layer.feedforward
    attention = replace(
        attention,
        num_heads=attention.num_heads // rank.size,
        num_kv_heads=_length(_key_heads(attention, rank)),
    )
    if not (isinstance(feedforward, MoEConfig) and rank.whole_experts):
        inter = _length(rank.share(feedforward.intermediate_size, _unit(layer)))
        feedforward = replace(feedforward, intermediate_size=inter)
    return LayerConfig(attention, feedforward)


def _layer_weights(layer: Layer, form: LayerConfig, rank: Rank) -> dict[str, Tensor]:
    """The tensors of a layer that are divided, by name."""
    attention, config = layer.attention, form.attention
    assert isinstance(attention, Attention)
    queries = rank.share(config.num_heads * config.head_dim)
    heads = _key_heads(config, rank)
    keys = slice(heads.start * config.head_dim, heads.stop * config.head_dim)
    inter = form.feedforward.intermediate_size
    units = rank.share(inter, _unit(form))
    pairs = slice(2 * units.start, 2 * units.stop)
    shares = {
        Role.QUERY: (_ROWS, queries),
        Role.KEY: (_ROWS, keys),
        Role.VALUE: (_ROWS, keys),
        Role.ATTENTION_OUTPUT: (_COLS, queries),
        Role.GATE: (_ROWS, units),
        Role.UP: (_ROWS, units),
        Role.DOWN: (_COLS, units),
        Role.EXPERT_GATE_UP: (_ROWS, pairs),
        Role.EXPERT_DOWN: (_COLS, units),
    }
    divided: dict[str, Tensor] = {}
    for name, module in layer.named_modules():
        if not isinstance(module, Linear | Experts) or module.role not in shares:
            continue
        dim, share = shares[module.role]
        sums = dim == _COLS
        if isinstance(module, Experts):
            dim += 1
            if rank.whole_experts:
                dim, share, sums = 0, rank.share(module.value.shape[0]), False
        for part, tensor in tensors_of(cut(module.value, dim, share)).items():
            divided[f"{name}.{part}"] = tensor
        if (bias := module.bias) is None:
            continue
        # The first rank adds the whole bias to a sum.
        whole = bias.detach() if rank.index == 0 else torch.zeros_like(bias)
        divided[f"{name}.bias"] = whole if sums else bias.detach()[(slice(None),) * dim + (share,)]
    if attention.sinks is not None:
        divided["attention.sinks"] = attention.sinks.detach()[rank.share(config.num_heads)]
    return divided
