"""What the model predicts at each position, and what each layer would have predicted (the logit
lens; nostalgebraist 2020, "interpreting GPT: the logit lens").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.model import Decoder

# Logits in memory at once: 64 MiB of float32. Glibc keeps freed blocks of up to 32 MiB, and over a
# large vocabulary they fragment to gigabytes.
_LOGITS = 1 << 24


@dataclass
class Predictions:
    """What follows each token by the model's distribution; see `Trace`."""

    entropy: Tensor
    top_ids: Tensor
    top_logprobs: Tensor
    next_logprob: Tensor
    next_rank: Tensor


def rows(decoder: Decoder, count: int) -> Iterator[slice]:
    """Blocks of positions whose logits are in memory at once; one that is empty, if all are."""
    step = max(1, _LOGITS // decoder.config.vocab_size)
    return (slice(start, min(start + step, count)) for start in range(0, max(count, 1), step))


def rank(logits: Tensor, ids: Tensor) -> Tensor:
    """The place of ids (rows,) among logits (rows, vocab), 1 for the largest."""
    return (logits > logits.gather(-1, ids[:, None])).sum(-1) + 1


@torch.no_grad()
def predictions(decoder: Decoder, hidden: Tensor, following: Tensor, top: int) -> Predictions:
    """Of normalised hidden states (tokens, hidden). following: the ids that follow them, int64; one
    less than tokens where the last has none.
    """
    parts: list[tuple[Tensor, ...]] = []
    for block in rows(decoder, len(hidden)):
        logits = decoder.unembed(hidden[block])
        logprobs = logits.log_softmax(-1)
        likely = logprobs.topk(min(top, logprobs.shape[-1]))
        entropy = -(logprobs.exp() * logprobs).nan_to_num(0.0).sum(-1)  # 0 log 0 is 0
        ids = following[block]
        known = logits[: len(ids)]
        missing = len(logits) - len(ids)
        own = logprobs[: len(ids)].gather(-1, ids[:, None])[:, 0]
        own = torch.cat([own, own.new_full((missing,), torch.nan)])
        place = torch.cat([rank(known, ids), ids.new_zeros(missing)])
        parts.append((entropy, likely.indices, likely.values, own, place))
    entropy, ids, values, own, place = (torch.cat(x).cpu() for x in zip(*parts, strict=True))
    return Predictions(entropy, ids.int(), values, own, place.int())


@dataclass
class Lens:
    """The logit lens at some positions; see `Trace` for the arrays of the same names."""

    lens_positions: Tensor
    lens_ids: Tensor
    lens_rank: Tensor
    lens_logprob: Tensor
    lens_next_logprob: Tensor
    lens_kl: Tensor


@torch.no_grad()
def lens(decoder: Decoder, streams: Sequence[Tensor], positions: Tensor, tokens: Tensor) -> Lens:
    """streams: for the embedding and each layer, the residual stream (positions, hidden) that it
    leaves. tokens: the text's.
    """
    following = torch.cat([tokens[1:], tokens[-1:]])[positions]  # the last one's is not used
    parts: list[list[tuple[Tensor, ...]]] = []
    for block in rows(decoder, len(positions)):
        final = decoder.unembed(decoder.norm(streams[-1][block]))
        predicted, shares = final.argmax(-1), final.log_softmax(-1)
        found = []
        for stream in streams:
            logits = decoder.unembed(decoder.norm(stream[block]))
            logprobs = logits.log_softmax(-1)
            apart = (shares.exp() * (shares - logprobs)).nan_to_num(0.0).sum(-1)
            own = logprobs.gather(-1, predicted[:, None])[:, 0]
            given = logprobs.gather(-1, following[block, None])[:, 0]
            found.append((logits.argmax(-1), rank(logits, predicted), own, given, apart))
        parts.append(found)
    ids, place, own, given, apart = (
        torch.stack([torch.cat([part[n][i] for part in parts]) for n in range(len(streams))]).cpu()
        for i in range(5)
    )
    given[:, positions.cpu() == len(tokens) - 1] = torch.nan
    return Lens(positions.cpu(), ids.int(), place.int(), own, given, apart)
