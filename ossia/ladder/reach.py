"""Evaluation beyond the training length: bits per byte by position, and YaRN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from ossia.config import ModelConfig, RoPE, YaRN
from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.train.corpus.vocabulary import CONTROL_TOKENS
from ossia.train.evaluate import HeldOut

_TOKENS_AT_ONCE = 4096


def with_yarn(config: ModelConfig, length: int, factor: float) -> ModelConfig:
    """The config with YaRN for `factor` times the training `length`.

    The bounds of its ramp are not rounded, as in gpt-oss.
    """
    assert isinstance(config.position, RoPE)
    yarn = YaRN(factor, original_context=length, truncate=False)
    return replace(config, position=replace(config.position, yarn=yarn))


def token_bytes(tokenizer: Tokenizer) -> Tensor:
    """int64 (vocab,): bytes of text that each id of a learned vocabulary encodes; 0 for control
    tokens.
    """
    # A byte-level vocabulary writes each byte as one character.
    sizes = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.int64)
    for name, number in tokenizer.get_vocab().items():
        sizes[number] = 0 if name in CONTROL_TOKENS else len(name)
    return sizes


@torch.no_grad()
def bits_by_position(
    decoder: Decoder, documents: Sequence[HeldOut], length: int, sizes: Tensor, parts: int
) -> list[float]:
    """Bits per byte in each of `parts` equal stretches of `length` positions.

    Each text is read in independent windows of `length` tokens. Only full windows count, so that
    every position is averaged over the same ones. sizes: `token_bytes`. Raises OssiaError if no
    text fills a window.
    """
    inputs, targets = _whole_windows(documents, length)
    if not len(inputs):
        raise OssiaError(
            f"no held-out text has more than the {length} tokens that the ladder reads at once; "
            "use a shorter --length or other --data"
        )
    losses = torch.zeros(length, dtype=torch.float64)
    rows = max(1, _TOKENS_AT_ONCE // length)
    for some, wanted in zip(inputs.split(rows), targets.split(rows), strict=True):
        logits = decoder(some.to(decoder.device)).flatten(0, 1)
        wanted = wanted.to(decoder.device)
        loss = F.cross_entropy(logits, wanted.flatten(), reduction="none")
        losses += loss.view(wanted.shape).sum(0, dtype=torch.float64).cpu()
    bits = losses.view(parts, -1).sum(1) / math.log(2)
    return (bits / sizes[targets].sum(0).view(parts, -1).sum(1)).tolist()


def _whole_windows(documents: Sequence[HeldOut], length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 (windows, length) each."""
    inputs = [torch.empty(0, length, dtype=torch.int64)]
    targets = list(inputs)
    for document in documents:
        tokens = document.tokens.long()
        used = (len(tokens) - 1) // length * length
        inputs.append(tokens[:used].view(-1, length))
        targets.append(tokens[1 : used + 1].view(-1, length))
    return torch.cat(inputs), torch.cat(targets)
