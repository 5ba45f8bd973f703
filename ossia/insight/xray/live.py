"""An x-ray of a text that still grows: what is seen at each token as soon as it has been read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ossia.insight.xray.attention import Look
from ossia.insight.xray.collect import Collector
from ossia.insight.xray.observed import Observed
from ossia.insight.xray.predict import predictions
from ossia.insight.xray.reader import Reader
from ossia.model import Decoder

CHUNK = 64  # tokens of a pass: few, because others wait for its end


class Reading(NamedTuple):
    """What is seen at one token, as plain numbers.

    logprob: of the token given those before it, and entropy: of the distribution that it was drawn
    from, in nats; rank: its place in it, 1 the likeliest. All three are None at the first token.
    attention: the shares of `Look` but REPEAT, means over all heads and layers. experts: those of
    each layer that has any, likeliest first.
    """

    token: int
    logprob: float | None
    entropy: float | None
    rank: int | None
    attention: tuple[float, ...]
    experts: tuple[tuple[int, ...], ...]


class Live:
    """A text of up to `capacity` tokens, and a second, observed pass over it."""

    def __init__(self, decoder: Decoder, capacity: int) -> None:
        self._decoder = decoder
        self._collector = Collector(decoder.config, decoder.ops)
        observed = decoder.on(Observed(decoder.ops, self._collector))
        self._reader = Reader(observed, capacity, chunk=CHUNK)
        self._last: Tensor | None = None  # the hidden state (1, hidden) of the last token read

    def read(self, ids: Sequence[int]) -> list[Reading]:
        """Read the text's next tokens, at most CHUNK, in one pass."""
        tokens = torch.tensor(ids, dtype=torch.int64, device=self._decoder.device)
        self._collector.begin(tokens)
        return self._readings(tokens, self._reader.read(tokens))

    def _readings(self, tokens: Tensor, hidden: Tensor) -> list[Reading]:
        first = self._last is None
        before = hidden[:-1] if self._last is None else torch.cat([self._last, hidden[:-1]])
        self._last = hidden[-1:].clone()
        found = predictions(self._decoder, before, tokens[1:] if first else tokens, 1)
        rows: list[tuple[float | None, float | None, int | None]] = [(None, None, None)] * first
        rows += zip(
            found.next_logprob.tolist(),
            found.entropy.tolist(),
            found.next_rank.tolist(),
            strict=True,
        )
        piece = self._collector.piece
        mass = piece.token_mass[..., : Look.REPEAT].mean(0).tolist()
        routed = [
            layer.tolist() for layer in piece.experts if layer.numel() and int(layer.min()) >= 0
        ]
        return [
            Reading(token, *row, tuple(mass[i]), tuple(tuple(layer[i]) for layer in routed))
            for i, (token, row) in enumerate(zip(tokens.tolist(), rows, strict=True))
        ]
