"""A trace in as few bytes as its page needs: arrays of bytes in base64, most of 256 levels."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ossia.insight.xray.attention import Look
from ossia.insight.xray.subject import Subject, clamp_shares, massive
from ossia.insight.xray.trace import Trace

_LENS_CELLS = 24_000  # of the lens: positions times layers


def packed(subject: Subject, budget: int) -> dict[str, Any]:
    """What a page shows of a trace, for JSON, in about `budget` bytes: of a text too long for it,
    the beginning; of too many maps, those of the heads that look most at one thing.
    """
    trace = subject.trace
    layers, heads, _ = trace.head_mass.shape
    chosen = trace.experts.shape[2]
    wide = 2 if trace.num_experts > 255 else 1
    # A token takes its share of the arrays below, in base64, and some 180 bytes of JSON.
    each = (layers * (chosen * wide + int(Look.REPEAT))) * 4 / 3 + 180
    shown = min(len(trace.tokens), max(16, int(budget * 0.6 / each)))
    data: dict[str, Any] = {
        "name": subject.name,
        "tokens": len(trace.tokens),
        "layers": layers,
        "heads": heads,
        "near": trace.near,
        "loss": _json(trace.loss),
        "pieces": subject.pieces[:shown],
        "ids": trace.tokens[:shown].tolist(),
        "logprob": [_json(x) for x in trace.next_logprob[:shown].tolist()],
        "rank": trace.next_rank[:shown].tolist(),
        "entropy": [_json(x) for x in trace.entropy[:shown].tolist()],
        "top": trace.top_ids[:shown].tolist(),
        "shares": [
            [round(100 * x, 1) for x in row] for row in trace.top_logprobs[:shown].exp().tolist()
        ],
        "headMass": _base64((trace.head_mass.nan_to_num(0) * 65535).round().to(torch.int32), 2),
        "tokenMass": _levels(trace.token_mass[:, :shown]),
        "massive": massive(trace),
        "clamp": [clamp_shares(trace, n) for n in range(layers)],
        "clampCounted": _share(trace.clamp_choices),
        "differences": {
            name: [_json(x) for x in one.kl[:shown].tolist()]
            for name, one in trace.differences.items()
        },
        **_lens(trace, shown),
    }
    if trace.num_experts:
        routed = [n for n in range(layers) if int(trace.load[n].sum())]
        data |= {
            "experts": trace.num_experts,
            "chosen": chosen,
            "routed": routed,
            "routing": _base64(trace.experts[:, :shown].clamp(min=0), wide),
            "routingBytes": wide,
            "load": trace.load.tolist(),
            "touched": [
                [n, *_rounded(trace.touched(n))] for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)
            ],
        }
    data["words"] = _words(subject, data)
    data |= _maps(trace, int(budget * 0.3))
    return data


def _lens(trace: Trace, shown: int) -> dict[str, Any]:
    """The lens at as many positions as fit, spread over those that there are."""
    places = (trace.lens_positions < shown).nonzero().flatten()
    most = max(1, _LENS_CELLS // len(trace.lens_ids))
    if len(places) > most:
        places = places[torch.arange(most) * len(places) // most]
    return {
        "lensAt": trace.lens_positions[places].tolist(),
        "lensIds": trace.lens_ids[:, places].tolist(),
        "lensRank": trace.lens_rank[:, places].tolist(),
        "lensKl": [_rounded(row) for row in trace.lens_kl[:, places]],
    }


def _words(subject: Subject, data: dict[str, Any]) -> dict[int, str]:
    """The text of each id that the page names."""
    ids = {id for key in ("top", "lensIds") for row in data[key] for id in row}
    return {id: subject.word(id) for id in sorted({*ids, *data["ids"]})}


def _maps(trace: Trace, budget: int) -> dict[str, Any]:
    """Maps of heads as lower triangles of bytes: those that were asked for, then those that look
    most at one thing.
    """
    cells = trace.thumbnails.shape[-1]
    triangle = torch.ones(cells, cells).tril().bool()
    room = max(1, int(budget * 3 / 4) // int(triangle.sum()))
    mass = trace.head_mass.nan_to_num(-1)
    order = [tuple(key) for key in trace.map_heads.tolist()]
    ranked = [column.flatten().argsort(descending=True).tolist() for column in mass.unbind(-1)]
    for places in zip(*ranked, strict=True):
        order += [divmod(place, mass.shape[1]) for place in places]
    wanted = list(dict.fromkeys(order))[:room]
    kept = [trace.thumbnails[layer, head][triangle] for layer, head in wanted]
    return {
        "mapCells": cells,
        "mapSize": -(-len(trace.tokens) // cells),
        "mapHeads": wanted,
        "maps": _base64(torch.stack(kept), 1),
    }


def _levels(values: Tensor) -> str:
    """Shares from 0 to 1 in 256 levels."""
    return _base64((values.nan_to_num(0) * 255).round().clamp(0, 255).to(torch.int32), 1)


def _base64(values: Tensor, size: int) -> str:
    """Whole numbers of `size` bytes each, little endian."""
    shifts = [(values.long() >> 8 * n) & 255 for n in range(size)]
    return base64.b64encode(bytes(torch.stack(shifts, -1).flatten().tolist())).decode()


def _share(choices: Tensor) -> float | None:
    counted, every = choices.sum(0).tolist()
    return counted / every if every else None


def _rounded(values: Tensor) -> Sequence[float | None]:
    return [_json(x) for x in values.tolist()]


def _json(value: float) -> float | None:
    return round(value, 3) if abs(value) < float("inf") else None
