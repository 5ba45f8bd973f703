"""FLOPs counted from a config are those of torch's counter on real runs, to the last product."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ossia.config import ExpertFormat, ModelConfig, with_expert_format
from ossia.families import PRESETS
from ossia.insight.counts import (
    Part,
    bytes_by_part,
    bytes_per_token,
    flops_by_part,
    forward_flops,
    parameters_by_part,
    training_flops,
)
from ossia.measure.random_weights import random_decoder
from ossia.model import Decoder
from ossia.ops.paged import LayerKind, PagedKV, PagePool
from tests import models

LENGTH = 23  # more than two of gpt_oss_like's windows


def packed() -> ModelConfig:
    return with_expert_format(models.small(), ExpertFormat.MXFP4)


FAMILIES = [
    models.gpt2_like,
    models.qwen3_like,
    models.qwen3_moe_like,
    models.gpt_oss_like,
    packed,
]


def counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def hidden_scores(config: ModelConfig, length: int) -> int:
    """FLOPs of the scores that the mask hides, which plain attention computes and drops."""
    pairs = [
        sum(not 0 <= i - j < (layer.attention.window or length) for j in range(length))
        for layer in config.layers
        for i in range(length)
    ]
    heads = [layer.attention.num_heads * layer.attention.head_dim for layer in config.layers]
    return sum(4 * heads[i // length] * pairs[i] for i in range(len(pairs)))


@pytest.mark.parametrize("build", FAMILIES)
def test_a_whole_text(build: Callable[[], ModelConfig]) -> None:
    config = build()
    decoder = random_decoder(config)
    tokens = torch.zeros(1, LENGTH, dtype=torch.int64)
    expected = forward_flops(config, LENGTH) + hidden_scores(config, LENGTH)
    assert counted(lambda: decoder(tokens)) == expected


def test_the_definition_trains_with_three_times_the_products() -> None:
    """A backward pass takes two products for each; the first layer's input needs no gradient, but
    the embedding below it does.
    """
    config = models.qwen3_like()
    decoder = Decoder(config)
    decoder.init_weights(torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        decoder(torch.zeros(1, LENGTH, dtype=torch.int64)).sum().backward()
    shown = training_flops(config, LENGTH) * LENGTH + 3 * hidden_scores(config, LENGTH)
    assert counter.get_total_flops() == shown


@pytest.mark.parametrize("build", FAMILIES)
def test_the_next_token_after_a_cached_text(build: Callable[[], ModelConfig]) -> None:
    config = build()
    decoder = random_decoder(config)
    attentions = [layer.attention for layer in config.layers]
    kinds = [LayerKind(a.window, a.num_kv_heads, a.head_dim) for a in attentions]
    pool = PagePool(kinds, dict.fromkeys(kinds, 2), dtype=decoder.dtype)
    tables = dict.fromkeys(pool.kinds, torch.arange(2, dtype=torch.int32)[None])

    def read(start: int, end: int) -> None:
        kv = PagedKV(pool, tables, torch.tensor([end]), torch.tensor([end - start]))
        decoder(torch.zeros(end - start, dtype=torch.int64), torch.arange(start, end), kv)

    with torch.no_grad():
        read(0, LENGTH - 1)
    parts = flops_by_part(config, LENGTH)
    assert counted(lambda: read(LENGTH - 1, LENGTH)) == sum(parts.values())


@pytest.mark.parametrize("name", PRESETS)
def test_parts_add_up(name: str) -> None:
    config = PRESETS[name]
    length = min(2000, config.context_length)
    first, rest = (flops_by_part(config, n, tokens=n) for n in (length // 2, length))
    second = flops_by_part(config, length, tokens=length - length // 2)
    assert rest == {part: first[part] + second[part] for part in rest}
    last = flops_by_part(config, length, tokens=length, logits=1)
    saved = rest[Part.UNEMBEDDING] - last[Part.UNEMBEDDING]
    assert saved == 2 * (length - 1) * config.vocab_size * config.hidden_size
    assert sum(bytes_by_part(config).values()) == bytes_per_token(config)


def test_parameters_by_part() -> None:
    """gpt-oss-20b: 24 layers of 32 experts, 2,880 wide, of which a token uses four."""
    parts = parameters_by_part(PRESETS["gpt-oss-20b"])
    experts = 24 * (3 * 2880 * 2880 + 3 * 2880)
    assert parts[Part.EXPERTS] == (32 * experts, 4 * experts)
    assert parts[Part.LOOKUP] == (201088 * 2880, 2880)
    assert parts[Part.NORM] == (49 * 2880, 49 * 2880)
    assert Part.MLP not in parts
    assert Part.SCORES not in parts
    tied = parameters_by_part(PRESETS["gpt2"])
    assert tied[Part.UNEMBEDDING] == (50257 * 768, 50257 * 768)
    assert tied[Part.LOOKUP] == (1024 * 768, 768)


def test_a_batch_reads_the_experts_that_it_is_expected_to_touch() -> None:
    """Each of n tokens misses an expert with probability 1 - k/E, so all of them do with its n-th
    power; simulated in tests/insight/test_roofline.py.
    """
    config = PRESETS["gpt-oss-20b"]
    one, eight = bytes_by_part(config), bytes_by_part(config, 8)
    assert eight[Part.EXPERTS] / one[Part.EXPERTS] == pytest.approx(8 * (1 - (7 / 8) ** 8))
    assert eight[Part.LOOKUP] == 8 * one[Part.LOOKUP]
    assert eight[Part.ATTENTION] == one[Part.ATTENTION]
