"""Replies of no sense under constraints: any token that a mask allows may come, as from a model of
random weights at a high temperature. Tokens that end things come more often, so that replies end.
"""

from __future__ import annotations

from functools import cache
from random import Random

import numpy as np
import torch
from torch import Tensor

from ossia.config import ModelConfig
from ossia.engine.request import Constraint
from ossia.model.context import Context
from ossia.ops import REFERENCE
from ossia.ops.paged import LayerKind
from ossia.text import Tokenizer
from tests.scripted import small_config

ENDS = {*b'"}]'}


@cache
def likely_ids(tokenizer: Tokenizer, size: int) -> np.ndarray:
    """The ids that end things."""
    control = {id for id in tokenizer.control.values() if id < size}
    ends = {id for id in range(size) if _ends(tokenizer, id)}
    return np.array(sorted(control | ends))


def write(
    constraint: Constraint, tokenizer: Tokenizer, size: int, seed: int, most: int
) -> list[int]:
    """Up to `most` ids in a vocabulary of `size`, each one that the mask allowed; the last is the
    reply's end if it came to one.
    """
    random, ids, likely = Random(seed), list[int](), likely_ids(tokenizer, size)
    bits = memoryview(bytearray(4 * -(-size // 32))).cast("I")
    while len(ids) < most:
        bits[:] = memoryview(bytes(bits.nbytes)).cast("I")
        constraint.mask(bits)
        flags = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[:size]
        choices = likely[flags[likely] == 1]
        if not len(choices) or random.random() < 0.6:
            choices = np.flatnonzero(flags)
        id = int(choices[random.randrange(len(choices))])
        ids.append(id)
        constraint.accept([id])
        if tokenizer.token_bytes(id) in STOPS:
            break
    return ids


STOPS = (b"<|return|>", b"<|call|>", b"<|im_end|>", b"<|endoftext|>")


def _ends(tokenizer: Tokenizer, id: int) -> bool:
    data = tokenizer.token_bytes(id)
    return len(data) == 1 and data[0] in ENDS


class Babbler:
    """Stands in for ossia.model.Decoder: its logits are noise that depends on the last token and
    its position.
    """

    device = torch.device("cpu")
    dtype = torch.float32
    fetches_experts = False
    ops = REFERENCE
    layer_kinds = (LayerKind(None, 1, 1),)

    def __init__(self, tokenizer: Tokenizer, context_length: int = 2048, seed: int = 0) -> None:
        self.config: ModelConfig = small_config(context_length)
        generator = torch.Generator().manual_seed(seed)
        self._noise = torch.randn(509, self.config.vocab_size, generator=generator)
        for id in range(self.config.vocab_size):
            if id in tokenizer.control.values() or _ends(tokenizer, id):
                self._noise[:, id] += 2.5

    def context(self, tokens: Tensor, positions: Tensor, where: object) -> Context:
        return Context(positions, {}, None)

    def hidden_states(self, tokens: Tensor, context: Context) -> Tensor:
        return ((tokens * 31 + context.positions * 17) % len(self._noise))[:, None].float()

    def unembed(self, hidden: Tensor) -> Tensor:
        return self._noise[hidden[:, 0].long()]

    def parameters(self):
        return iter(())

    buffers = parameters
