"""Log-probabilities of given tokens in the model's own distribution: the log-softmax of its logits,
before anything that sampling changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ossia.engine.request import SamplingParams, TokenLogprob

if TYPE_CHECKING:
    from ossia.model import Decoder

# Logits that are in memory at once while a prompt is scored: 64 MiB of float32.
BLOCK = 1 << 24


def log_probabilities(
    logits: Tensor, tokens: Sequence[int], alternatives: int
) -> list[TokenLogprob]:
    """For each row of logits (rows, vocab) its token's log-probability, and as many of the most
    likely ids; NaN in a row without a distribution, which holds NaN or +inf or is -inf throughout.
    """
    own = logits.float()
    total = own.logsumexp(-1, keepdim=True)
    total = torch.where(total.isfinite(), total, math.nan)
    chosen = torch.tensor(tokens, device=own.device)[:, None]
    values = (own.gather(-1, chosen) - total)[:, 0].tolist()
    top = own.topk(alternatives)
    pairs = zip(top.indices.tolist(), (top.values - total).tolist(), strict=True)
    tops = [tuple(zip(ids, logprobs, strict=True)) for ids, logprobs in pairs]
    return [TokenLogprob(*row) for row in zip(tokens, values, tops, strict=True)]


def score(
    decoder: Decoder, hidden: Tensor, tokens: Sequence[int], alternatives: int
) -> list[TokenLogprob]:
    """`log_probabilities` of the token that follows each of the hidden states (tokens, hidden), a
    block of positions at a time.
    """
    rows = max(1, BLOCK // decoder.config.vocab_size)
    found: list[TokenLogprob] = []
    for begin in range(0, len(tokens), rows):
        block = slice(begin, begin + rows)
        found += log_probabilities(decoder.unembed(hidden[block]), tokens[block], alternatives)
    return found


class PromptScores:
    """The log-probabilities of a prompt's tokens, collected in order while it is read.

    The token at position p is scored by the logits of position p - 1, so that the pages of a prefix
    can be reused only up to the first token that has no score yet.
    """

    def __init__(self, prompt: Sequence[int], params: SamplingParams) -> None:
        assert params.prompt_logprobs is not None
        self.alternatives = params.prompt_logprobs
        self.found: list[TokenLogprob] = []
        self._prompt = prompt
        self._next = params.prompt_logprobs_from

    def targets(self, start: int, end: int) -> tuple[int, tuple[int, ...]]:
        """The tokens that a pass over positions start .. end - 1 scores, and the first of these
        positions whose logits do so; the others follow it.
        """
        first = max(self._next, start + 1)
        return first - 1, tuple(self._prompt[first : end + 1])

    def add(self, scores: Sequence[TokenLogprob]) -> None:
        """Record the next tokens' scores."""
        self.found += scores
        self._next += len(scores)

    @property
    def reusable(self) -> int | None:
        """How many positions need not be computed; None if that depends on the scores no more."""
        return self._next - 1 if self._next < len(self._prompt) else None
