"""Numbers beyond float32: a model of absurd weights writes what it would write in float64, or the
request fails; it never writes a finite and wrong text.
"""

import copy

import pytest
import torch

from ossia.engine import Request, SamplingParams
from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.ops import REFERENCE
from tests.engine.engines import engine as build
from tests.models import gpt2_like, gpt_oss_like, qwen3_like, qwen3_moe_like

PROMPT = [int(id) for id in torch.randint(0, 97, (20,), generator=torch.Generator().manual_seed(1))]
NEW = 3


def backends():
    try:
        from ossia.ops.cpu import CPU
    except ImportError:
        return [REFERENCE]
    return [REFERENCE, CPU]


def tokens_in_float64(decoder: Decoder) -> list[int]:
    wide, tokens = copy.deepcopy(decoder).double(), list(PROMPT)
    for _ in range(NEW):
        tokens.append(int(wide(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("backend", backends(), ids=lambda backend: backend.name)
@pytest.mark.parametrize("config", [gpt2_like, qwen3_like, qwen3_moe_like, gpt_oss_like])
@pytest.mark.parametrize("factor", [1e20, 1e30])
def test_overflow_is_an_error_or_does_not_matter(config, backend, factor):
    decoder = Decoder(config(), backend).eval()
    decoder.init_weights(torch.Generator().manual_seed(0))
    failed = 0
    with torch.inference_mode():
        for name, parameter in decoder.named_parameters():
            if name.startswith(("layers.2", "layers.3")):  # as the first two
                continue
            before = parameter.clone()
            parameter.mul_(factor)
            request = Request(PROMPT, SamplingParams(temperature=0, max_tokens=NEW))
            try:
                (found,) = build(decoder).generate([request])
            except OssiaError as error:
                failed += "not finite" in str(error)
            else:
                assert found.tokens == tokens_in_float64(decoder), name
            parameter.copy_(before)
    assert failed > 1 or factor < 1e30
