"""The engine on real decoders of random weights: greedy tokens in float32 are those of plain
forward passes without a cache, however the work is divided."""

import pytest
import torch

from ossia.engine import Request, SamplingParams
from ossia.model import Decoder
from tests.engine.engines import engine as build
from tests.engine.engines import step
from tests.models import gpt2_like, gpt_oss_like, qwen3_like

NEW = 16


@pytest.fixture(scope="module", params=[gpt2_like, qwen3_like, gpt_oss_like])
def model(request):
    """A decoder, prompts, and the greedy tokens that plain forward passes give."""
    generator = torch.Generator().manual_seed(0)
    decoder = Decoder(request.param()).eval()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            # Large weights and small biases, so that what is written depends on what is read.
            parameter.normal_(0, 0.1 if name.endswith("bias") else 1.0, generator=generator)
    lengths = (1, 5, 16, 33, 61)
    prompts = [torch.randint(0, 97, (n,), generator=generator).tolist() for n in lengths]
    expected = []
    with torch.inference_mode():
        for prompt in prompts:
            tokens = list(prompt)
            for _ in range(NEW):
                tokens.append(int(decoder(torch.tensor([tokens]))[0, -1].argmax()))
            expected.append(tokens[len(prompt) :])
    assert len({token for tokens in expected for token in tokens}) > 10  # not a constant model
    return decoder, prompts, expected


def run(decoder, prompts, **engine):
    sampling = SamplingParams(temperature=0, max_tokens=NEW)
    results = build(decoder, **engine).generate(Request(p, sampling) for p in prompts)
    return [result.tokens for result in results]


@pytest.mark.parametrize(
    ("page_size", "prefill_chunk", "max_batch"), [(4, 512, 8), (16, 7, 8), (4, 10, 2), (16, 64, 1)]
)
def test_greedy_tokens_are_those_of_plain_forward_passes(
    model, page_size, prefill_chunk, max_batch
):
    decoder, prompts, expected = model
    sizes = {"page_size": page_size, "prefill_chunk": prefill_chunk, "max_batch": max_batch}
    assert run(decoder, prompts, **sizes) == expected


def test_a_neighbour_that_leaves_changes_no_token(model):
    decoder, prompts, expected = model
    engine = build(decoder, page_size=4, prefill_chunk=20)
    sampling = SamplingParams(temperature=0, max_tokens=NEW)
    ids = [engine.add(Request(prompt, sampling)) for prompt in prompts]
    tokens = {request_id: [] for request_id in ids}
    for turn in range(NEW + 10):
        if turn == 4:
            engine.abort(ids[1])
        for output in step(engine):
            tokens[output.request_id].append(output.token)
    assert tokens.pop(ids[1]) == expected.pop(1)[:4]
    assert list(tokens.values()) == expected


def test_a_seed_gives_the_same_tokens_alone_and_in_company(model):
    decoder, prompts, _ = model
    requests = [
        Request(prompt, SamplingParams(seed=i, top_p=(1.0, 0.8)[i % 2], max_tokens=NEW))
        for i, prompt in enumerate(prompts)
    ]
    together = [result.tokens for result in build(decoder).generate(requests)]
    alone = [build(decoder).generate([request])[0].tokens for request in requests]
    assert together == alone


def test_logprobs_are_those_of_a_plain_forward_pass(model):
    decoder, prompts, _ = model
    sampling = SamplingParams(temperature=0.5, seed=1, logprobs=3, max_tokens=4)
    (result,) = build(decoder).generate([Request(prompts[3], sampling)])
    with torch.inference_mode():
        logits = decoder(torch.tensor([prompts[3] + result.tokens]))[0, len(prompts[3]) - 1 : -1]
    expected = logits.double().log_softmax(-1)
    for row, output in zip(expected, result.outputs, strict=True):
        assert output.logprob == pytest.approx(row[output.token].item(), abs=1e-4)
        top = row.topk(3)
        assert [token for token, _ in output.top_logprobs] == top.indices.tolist()
        assert [value for _, value in output.top_logprobs] == pytest.approx(
            top.values.tolist(), abs=1e-4
        )


@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_pages_in_a_byte_each_give_every_schedule_the_same_tokens(model, kv):
    """Alone and together, in chunks and after a hit in the prefix cache."""
    decoder, prompts, _ = model
    prompts = [prompts[2], prompts[1], prompts[2]]
    alone = [run(decoder, [prompt], kv=kv)[0] for prompt in prompts]
    assert run(decoder, prompts, kv=kv, prefill_chunk=5, page_size=4, max_batch=2) == alone
