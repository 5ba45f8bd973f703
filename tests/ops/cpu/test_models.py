"""Whole models on the native kernels, in every instruction set, over pages: `transformers` with the
same weights says the same, as nearly as bfloat16 allows.
"""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Mxfp4Config

import ossia
from ossia.model import Decoder
from ossia.ops.paged import LayerKind, PagedKV, PagePool
from tests.ops.cpu.common import cpu, relative_error
from tests.test_parity import CONFIGS, GPT_OSS, random_model, tokens

LENGTH = 100
# Steps of one token, of a few, and of a prompt: each goes through kernels of its own.
STEPS = (0, 60, 61, 62, 70, 99, LENGTH)


@dataclass(frozen=True)
class Pair:
    """A model in bfloat16, the logits of the same weights in float32, and how far from these those
    of transformers in bfloat16 lie.
    """

    decoder: Decoder
    exact: Tensor
    error: float


@pytest.fixture(scope="module", params=[*CONFIGS, "gpt-oss, packed"])
def pair(request, tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp("model")
    packed = request.param == "gpt-oss, packed"
    model = random_model(GPT_OSS if packed else CONFIGS[request.param]).bfloat16()
    model.save_pretrained(folder)
    if packed:
        ossia.save_model(ossia.load_model(folder), folder / "packed", experts="mxfp4")
        folder /= "packed"
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, quantization_config=Mxfp4Config(dequantize=True)
        ).eval()
    decoder = ossia.load_model(folder)
    assert decoder.dtype is torch.bfloat16
    text = tokens(1, LENGTH)
    with torch.no_grad():
        theirs = model(text).logits.float()
        exact = model.float()(text).logits
    return Pair(decoder, exact[0], relative_error(theirs, exact))


def paged_logits(decoder: Decoder, text: Tensor) -> Tensor:
    """Logits (tokens, vocab) of a text that is read in STEPS."""
    attentions = [layer.attention for layer in decoder.config.layers]
    kinds = [LayerKind(a.window, a.num_kv_heads, a.head_dim) for a in attentions]
    pages = -(-len(text) // 16)
    pool = PagePool(kinds, dict.fromkeys(kinds, pages), dtype=decoder.dtype)
    table = torch.arange(pages, dtype=torch.int32)[None]
    parts = []
    for start, end in pairwise(STEPS):
        lengths = torch.tensor([end]), torch.tensor([end - start])
        kv = PagedKV(pool, dict.fromkeys(pool.kinds, table), *lengths)
        parts.append(decoder.hidden_states(text[start:end], torch.arange(start, end), kv))
    return decoder.unembed(torch.cat(parts))


def test_in_bfloat16_logits_are_as_near_to_the_float32_models_as_theirs(form, pair):
    assert pair.decoder.ops is cpu.CPU
    found = form(paged_logits, pair.decoder, tokens(1, LENGTH)[0])
    assert relative_error(found, pair.exact) <= 1.1 * pair.error
