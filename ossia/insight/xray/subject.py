"""What is x-rayed, in words: a trace with its model's name and the text of its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ossia.insight.xray.attention import Look
from ossia.insight.xray.effects import Difference
from ossia.insight.xray.trace import Trace


@dataclass(frozen=True)
class Subject:
    """name: the model's, with what is changed about it. about: lines of its description, a label
    and a text each. pieces: the text that each token completes. word: the text of any id by itself.
    """

    name: str
    about: tuple[tuple[str, str], ...]
    trace: Trace
    pieces: tuple[str, ...]
    word: Callable[[int], str]


def record(subject: Subject) -> dict[str, Any]:
    """The x-ray as JSON: every token, every head, every layer, and no maps."""
    trace = subject.trace
    return {
        "model": subject.name,
        "about": dict(subject.about),
        "loss": _number(trace.loss),
        "tokens": [_token(subject, t) for t in range(len(trace.tokens))],
        "attention": {
            "looks": [look.name.lower() for look in Look],
            "near": trace.near,
            "head_mass": _numbers(trace.head_mass.tolist()),
        },
        "layers": [_layer(trace, n) for n in range(len(trace.attention_norm))],
        "lens": [_lens(subject, i) for i in range(len(trace.lens_positions))],
        "effects": {name: difference_record(one) for name, one in trace.differences.items()},
    }


def difference_record(one: Difference) -> dict[str, Any]:
    """A difference of predictions as JSON, over all tokens."""
    return {
        "mean_kl": _number(float(one.kl.mean())),
        "agreement": _number(float(one.agrees.float().mean())),
        "largest_logit_difference": _number(float(one.largest.max())),
    }


def massive(trace: Trace, most: int = 10) -> list[dict[str, Any]]:
    """The activations that tower over the others of their token (Sun et al. 2024,
    https://arxiv.org/abs/2402.17762): for each token and dimension where it is the largest, in
    the layer where it is so most, ordered by size.
    """
    found: dict[tuple[int, int], dict[str, Any]] = {}
    values = trace.stream_max.abs()
    for place in values.flatten().argsort(descending=True).tolist():
        stream, token = divmod(place, values.shape[1])
        key = token, int(trace.stream_max_dim[stream, token])
        if key not in found:
            value = float(trace.stream_max[stream, token])
            median = float(trace.stream_median[stream, token])
            found[key] = {
                "layer": stream - 1,
                "token": token,
                "dimension": key[1],
                "value": _number(value),
                "times_median": _number(abs(value) / median if median else float("inf")),
            }
            if len(found) == most:
                break
    return [*found.values()]


def clamp_shares(trace: Trace, layer: int) -> tuple[float, float, float] | None:
    """The shares of a layer's gates and ups that the clamp cuts, and the mean relative change of
    the output if it did not; None where nothing was counted.
    """
    values, gates, ups = trace.clamp_counts[layer].tolist()
    if not values:
        return None
    return gates / values, ups / values, float(trace.clamp_change[layer].mean())


def _token(subject: Subject, t: int) -> dict[str, Any]:
    trace = subject.trace
    top = zip(trace.top_ids[t].tolist(), trace.top_logprobs[t].tolist(), strict=True)
    return {
        "id": int(trace.tokens[t]),
        "text": subject.pieces[t],
        "entropy": _number(float(trace.entropy[t])),
        "next_logprob": _number(float(trace.next_logprob[t])),
        "next_rank": int(trace.next_rank[t]) or None,
        "top": [
            {"id": id, "text": subject.word(id), "logprob": _number(logprob)} for id, logprob in top
        ],
    }


def _layer(trace: Trace, n: int) -> dict[str, Any]:
    """What a layer does, as means over the tokens."""
    row: dict[str, Any] = {
        "attention": _numbers(trace.token_mass[n].mean(0).tolist()),
        "stream_norm": _number(float(trace.stream_norm[n + 1].mean())),
        "attention_norm": _number(float(trace.attention_norm[n].mean())),
        "feedforward_norm": _number(float(trace.feedforward_norm[n].mean())),
    }
    if trace.load.numel() and int(trace.load[n].sum()):
        row["experts"] = trace.experts[n].tolist()
        row["load"] = trace.load[n].tolist()
    if (shares := clamp_shares(trace, n)) is not None:
        row["clamp"] = dict(zip(("gate", "up", "change"), _numbers(shares), strict=True))
    return row


def _lens(subject: Subject, i: int) -> dict[str, Any]:
    trace = subject.trace
    ids = trace.lens_ids[:, i].tolist()
    return {
        "position": int(trace.lens_positions[i]),
        "ids": ids,
        "texts": [subject.word(id) for id in ids],
        "rank": trace.lens_rank[:, i].tolist(),
        "kl": _numbers(trace.lens_kl[:, i].tolist()),
    }


def _numbers(values: Any) -> Any:
    """Nested lists of numbers, as JSON has them."""
    if isinstance(values, list | tuple):
        return [_numbers(value) for value in values]
    return _number(values)


def _number(value: float) -> float | None:
    """Six digits; None for what JSON has no number for."""
    return float(f"{value:.6g}") if abs(value) < float("inf") else None
