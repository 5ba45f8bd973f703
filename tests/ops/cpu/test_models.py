"""Whole models on the native kernels, in every instruction set, over pages: `transformers` with the
same weights says the same, as nearly as bfloat16 allows.
"""

import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import Mxfp4Config

import ossia
from ossia.engine import Engine, Request, Result, SamplingParams
from ossia.model import Decoder
from ossia.ops import _native
from ossia.ops.paged import LayerKind, PagedKV, PagePool
from ossia.options import EngineOptions
from ossia.text import Chat, load_format, load_tokenizer
from tests.ops.cpu.common import cpu, missing
from tests.ops.cpu.remote import Remote
from tests.transformers_models import CONFIGS, GPT_OSS, random_model, tokens

LENGTH = 100
# Steps of one token, of a few, and of a prompt: each goes through kernels of its own.
STEPS = (0, 60, 61, 62, 70, 99, LENGTH)
PACKAGED = Path(ossia.__file__).parent / "models" / "ossia-stdlib"
QUESTIONS = (
    "Add 714 and 48.",
    "What is 367 + 284?",
    "Sort 72, 37, 81, 58.",
    "What is 93 minus 15?",
    "Reverse the word iter.",
)


@dataclass(frozen=True)
class Pair:
    """A model in bfloat16, the logits of the same weights in float32, and how far from these those
    of transformers in bfloat16 lie.
    """

    decoder: Decoder
    exact: Tensor
    error: float


def token_error(found: Tensor, expected: Tensor) -> float:
    """The median of the tokens' relative errors: where a router's choices nearly tie, rounding
    decides, in any bfloat16 model, and that token's logits are others.
    """
    distance = (found.double() - expected.double()).norm(dim=-1)
    return float((distance / expected.double().norm(dim=-1)).median())


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
    return Pair(decoder, exact[0], token_error(theirs[0], exact[0]))


@torch.no_grad()
def paged_logits(decoder: Decoder, text: Tensor, steps: Sequence[int] = STEPS) -> Tensor:
    """Logits (tokens, vocab) of a text that is read from each of `steps` to the next."""
    attentions = [layer.attention for layer in decoder.config.layers]
    kinds = [LayerKind(a.window, a.num_kv_heads, a.head_dim) for a in attentions]
    pages = -(-len(text) // 16)
    pool = PagePool(kinds, dict.fromkeys(kinds, pages), dtype=decoder.dtype)
    table = torch.arange(pages, dtype=torch.int32)[None]
    parts = []
    for start, end in pairwise(steps):
        lengths = torch.tensor([end]), torch.tensor([end - start])
        kv = PagedKV(pool, dict.fromkeys(pool.kinds, table), *lengths)
        tokens = text[start:end]
        context = decoder.context(tokens, torch.arange(start, end), kv)
        parts.append(decoder.hidden_states(tokens, context))
    return decoder.unembed(torch.cat(parts))


def test_in_bfloat16_logits_are_as_near_to_the_float32_models_as_theirs(form, pair):
    assert pair.decoder.ops is cpu.CPU
    found = form(paged_logits, pair.decoder, tokens(1, LENGTH)[0])
    assert token_error(found, pair.exact) <= 1.1 * pair.error


@pytest.mark.parametrize("pair", ["gpt2", "gpt-oss, packed"], indirect=True)
@pytest.mark.parametrize(("processor", "isa"), [("Westmere", "portable"), ("Haswell", "avx2")])
def test_one_build_runs_on_older_processors(pair, processor, isa):
    """Under an emulator, to which an instruction that the processor lacks is the end: Westmere has
    no AVX, and Haswell no AVX-512.
    """
    if platform.machine() != "x86_64" or shutil.which("qemu-x86_64") is None:
        pytest.skip("no qemu-x86_64 on an x86-64, so no older processors")
    worker = (sys.executable, str(Path(__file__).parent / "worker.py"), _native.__file__)
    remote = Remote("qemu-x86_64", "-cpu", processor, *worker, "2", "", "end")
    assert remote.isa() == isa
    with cpu.using(remote.machine):
        found = paged_logits(pair.decoder, tokens(1, LENGTH)[0, :30], (0, 28, 29, 30))
    assert token_error(found, pair.exact[:30]) <= 1.5 * pair.error  # of fewer tokens


@torch.no_grad()
def test_the_packaged_model_says_what_the_float32_reference_says(isa):
    """Greedily, 256 tokens of replies: all of them in float32, and in bfloat16 all but ties."""
    try:
        machine = cpu.Machine(2, isa)
    except ValueError:
        pytest.skip(missing(isa))
    chat_format = load_format(PACKAGED, load_tokenizer(PACKAGED))
    sampling = SamplingParams(temperature=0.0, max_tokens=200, stop_ids=chat_format.stop_ids)
    prompts = [
        chat_format.render(
            Chat.of(
                [{"role": "user", "content": question}], reasoning_effort="high", date="2026-11-22"
            )
        )
        for question in QUESTIONS
    ]
    reference = ossia.load_model(PACKAGED, dtype=torch.float32, backend="reference")
    with cpu.using(machine):
        native = ossia.load_model(PACKAGED, dtype=torch.float32)
        engine = Engine(native, EngineOptions(prefix_cache=False))
        replies = engine.generate([Request(prompt, sampling) for prompt in prompts])
        narrow = ossia.load_model(PACKAGED)
        rounded = [
            paged_logits(narrow, torch.tensor([*prompt, *reply.tokens]), (0, *_ends(prompt, reply)))
            for prompt, reply in zip(prompts, replies, strict=True)
        ]
    assert sum(len(reply.tokens) for reply in replies) >= 256
    for prompt, reply, found in zip(prompts, replies, rounded, strict=True):
        said = slice(len(prompt) - 1, -1)
        exact = reference(torch.tensor([[*prompt, *reply.tokens]]))[0, said]
        best, choice = exact.max(-1)
        assert choice.tolist() == reply.tokens
        behind = best - exact.gather(-1, found[said].argmax(-1, keepdim=True))[:, 0]
        assert (behind <= 2**-7 * best.abs()).all()  # the next number of bfloat16


def _ends(prompt: Sequence[int], reply: Result) -> range:
    """The prompt at once, then the reply token by token."""
    return range(len(prompt), len(prompt) + len(reply.tokens) + 1)
