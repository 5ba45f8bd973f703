"""Trace: what an x-ray of one text has found, as arrays; exported as .npz and as a dataframe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ossia.errors import OssiaError
from ossia.insight.xray.attention import Look
from ossia.insight.xray.effects import Difference

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Trace:
    """An x-ray of one text of T tokens by a model of L layers and H heads.

    Index t of an array is the position that computes: next_logprob[t] is how likely the model finds
    token t + 1 having read tokens 0 to t. Layers and heads that a model lacks, or that are smaller
    than its largest, hold NaN (-1 for ids). Logarithms are natural. "Stream" is the residual
    stream: index 0 is the embedding, index n + 1 what layer n leaves.

    Tokens and predictions:
    tokens: int64 (T,). entropy: float32 (T,), nats. top_ids: int32 (T, top) and top_logprobs:
    float32 (T, top), likeliest first. next_logprob: float32 (T,), NaN at the last token. next_rank:
    int32 (T,), 1 if the next token was the likeliest, 0 at the last token.

    Attention:
    head_mass: float32 (L, H, 7), the mean over the tokens of each head's attention by what it looks
    at (`Look`). token_mass: float32 (L, T, 6), the mean over the heads at each token, of the first
    six. near: the window that separates NEAR from FAR. thumbnails: uint8 (L, H, cells, cells), each
    head's map, of 255, reduced so that a cell holds the largest probability in it; empty where not
    wanted. map_heads: int32 (M, 2), the (layer, head) of maps: float16 (M, T, T), rows of queries.

    Experts, of E and K chosen (0 for models without):
    experts: int32 (L, T, K), likeliest first. expert_weights: float32 (L, T, K). num_experts: E.

    Residual stream:
    stream_norm: float32 (L + 1, T), Euclidean. attention_norm, feedforward_norm: float32 (L, T), of
    what each half of a layer adds. stream_max: float32 (L + 1, T), the number of the largest
    magnitude, signed; stream_max_dim: int32, its dimension. stream_median: float32 (L + 1, T), of
    the magnitudes.

    SwiGLU's clamp:
    clamp_counts: int64 (L, 3), values of the gate that were counted, gates above the limit, and ups
    beyond it. clamp_choices: int64 (L, 2), choices of experts whose values were counted, and all of
    them. clamp_change: float32 (L, T), the change of the experts' output if nothing were cut,
    relative to it.

    The logit lens, at P positions:
    lens_positions: int64 (P,). lens_ids: int32 (L + 1, P), what the stream predicts there.
    lens_rank: int32 (L + 1, P), the place that it gives to the model's own prediction, 1 the first;
    lens_logprob: float32 (L + 1, P), of the same. lens_next_logprob: float32 (L + 1, P), of the
    text's next token. lens_kl: float32 (L + 1, P), the divergence of its distribution from the
    model's own, nats.

    differences: the effect of each lower precision on the model's predictions, by name.
    """

    tokens: Tensor
    entropy: Tensor
    top_ids: Tensor
    top_logprobs: Tensor
    next_logprob: Tensor
    next_rank: Tensor
    head_mass: Tensor
    token_mass: Tensor
    thumbnails: Tensor
    map_heads: Tensor
    maps: Tensor
    experts: Tensor
    expert_weights: Tensor
    stream_norm: Tensor
    attention_norm: Tensor
    feedforward_norm: Tensor
    stream_max: Tensor
    stream_max_dim: Tensor
    stream_median: Tensor
    clamp_counts: Tensor
    clamp_choices: Tensor
    clamp_change: Tensor
    lens_positions: Tensor
    lens_ids: Tensor
    lens_rank: Tensor
    lens_logprob: Tensor
    lens_next_logprob: Tensor
    lens_kl: Tensor
    near: int
    num_experts: int
    differences: Mapping[str, Difference] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """The mean of -log p over the tokens after the first, in nats; NaN for one token."""
        return float(-self.next_logprob[:-1].mean())

    @property
    def decided(self) -> Tensor:
        """int64 (P,): the number of layers after which the lens first ranks the model's own
        prediction first; 0 if the embedding does so.
        """
        return (self.lens_rank == 1).int().argmax(0)

    @property
    def load(self) -> Tensor:
        """int64 (L, E): how many tokens chose each expert; zeros in layers without experts."""
        rows = [row[row >= 0].flatten().long() for row in self.experts]
        return torch.stack([row.bincount(minlength=self.num_experts) for row in rows])

    def together(self, layer: int) -> Tensor:
        """int64 (E, E): how many tokens chose both experts; their loads on the diagonal."""
        chosen = self.experts[layer]
        fired = torch.zeros(len(chosen), self.num_experts)
        if self.num_experts and int(chosen.min()) >= 0:
            fired.scatter_(1, chosen.long(), 1.0)
        return (fired.T @ fired).long()

    def touched(self, batch: int) -> Tensor:
        """float32 (L,): the share of a layer's experts that `batch` different tokens of the text,
        picked at random, are expected to use.
        """
        length = len(self.tokens)
        batch = min(batch, length)
        without = length - self.load.double()  # tokens that leave the expert alone
        # All of a batch leave it alone: C(without, batch) / C(length, batch).
        ways = torch.lgamma(without + 1) - torch.lgamma((without - batch).clamp(min=0) + 1)
        every = torch.lgamma(torch.tensor(length + 1.0).double())
        every = every - torch.lgamma(torch.tensor(length - batch + 1.0).double())
        alone = torch.where(without >= batch, (ways - every).exp(), 0.0)
        return (1 - alone).mean(-1).float()

    def save(self, path: str | Path) -> None:
        """Write every array to an .npz file, which `numpy.load` and `Trace.load_from` read."""
        import numpy

        arrays: dict[str, Any] = {name: x.numpy() for name, x in self._arrays().items()}
        about = {
            "near": self.near,
            "num_experts": self.num_experts,
            "differences": [*self.differences],
        }
        with open(path, "wb") as file:
            numpy.savez_compressed(file, about=numpy.array(json.dumps(about)), **arrays)

    @classmethod
    def load_from(cls, path: str | Path) -> Self:
        """What `save` wrote. Raises OssiaError for another file."""
        import numpy

        try:
            with numpy.load(path) as file:
                about = json.loads(str(file["about"]))
                arrays = {name: torch.from_numpy(file[name]) for name in file if name != "about"}
            differences = {
                name: Difference(*(arrays.pop(f"difference_{n}_{f.name}") for f in _PARTS))
                for n, name in enumerate(about.pop("differences"))
            }
            return cls(**arrays, **about, differences=differences)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OssiaError(f"{path} is not an x-ray that ossia saved: {error}") from error

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each token, in pandas: its id, the prediction after it, the mean over layers
        of what attention looks at, the norm of the last stream, and the experts of each layer.
        """
        try:
            import pandas
        except ImportError as error:
            raise OssiaError("a dataframe needs pandas: pip install 'ossia[xray]'") from error
        return pandas.DataFrame(self.columns())

    def columns(self) -> dict[str, list[Any]]:
        """The columns of `to_dataframe`, as lists."""
        mass = self.token_mass.nanmean(0)
        found: dict[str, list[Any]] = {
            "token": self.tokens.tolist(),
            "entropy": self.entropy.tolist(),
            "likeliest": self.top_ids[:, 0].tolist(),
            "likeliest_logprob": self.top_logprobs[:, 0].tolist(),
            "next_logprob": self.next_logprob.tolist(),
            "next_rank": self.next_rank.tolist(),
        }
        for look in list(Look)[: Look.REPEAT]:
            found[f"attention_{look.name.lower()}"] = mass[:, look].tolist()
        found["stream_norm"] = self.stream_norm[-1].tolist()
        for layer, chosen in enumerate(self.experts):
            if chosen.numel() and int(chosen.min()) >= 0:
                found[f"experts_{layer}"] = chosen.tolist()
        return found

    def _arrays(self) -> dict[str, Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        for n, one in enumerate(self.differences.values()):
            for part in _PARTS:
                arrays[f"difference_{n}_{part.name}"] = getattr(one, part.name)
        return arrays


_PARTS = fields(Difference)
