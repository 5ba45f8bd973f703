"""Steps run from a record make the tokens that the operations one by one make."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("ossia.ops._native")

from ossia.engine import Request, SamplingParams
from ossia.engine.runner import MOST_RECORDED
from ossia.model import Decoder
from ossia.ops.backend import Capture
from ossia.ops.cpu import CPU
from tests.engine.engines import engine as build
from tests.models import gpt2_like, gpt_oss_like, qwen3_like

NEW = 24


def decoder(config, ops=CPU, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    model = Decoder(config, ops).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.normal_(0, 0.1 if name.endswith("bias") else 1.0, generator=generator)
    return model.to(dtype)


def counted(events: list[str]) -> Capture:
    """CPU.capture, noting when a step is recorded, refused and run again."""
    assert CPU.capture is not None

    def capture(step):
        assert CPU.capture is not None
        result, again = CPU.capture(step)
        if again is None:
            events.append("refused")
            return result, None
        events.append("recorded")
        return result, lambda: (events.append("again"), again())[1]

    return capture


def tokens(model, count=1, kv=None, **sampling):
    generator = torch.Generator().manual_seed(1)
    requests = [
        Request(
            torch.randint(0, 97, (3 + 3 * i,), generator=generator).tolist(),
            SamplingParams(**{"temperature": 0, "max_tokens": NEW - i, **sampling}),
        )
        for i in range(count)
    ]
    engine = build(model, max_batch=count, page_size=4, prefill_chunk=512, kv=kv)
    return [result.tokens for result in engine.generate(requests)]


@pytest.mark.parametrize("config", [gpt2_like, qwen3_like, gpt_oss_like])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 5])
def test_recorded_steps_change_no_token(config, dtype, count):
    events: list[str] = []
    recorded = decoder(config(), replace(CPU, capture=counted(events)), dtype)
    plain = decoder(config(), replace(CPU, capture=None), dtype)
    found = tokens(recorded, count)
    assert found == tokens(plain, count)
    assert "refused" not in events
    # Sequences end one by one: each number of them has a record, and is run again from it.
    assert events.count("recorded") == count
    assert events.count("again") == NEW - 1 - count


def test_recorded_steps_read_int8_pages_and_weights():
    models = [decoder(gpt_oss_like(), ops) for ops in (CPU, replace(CPU, capture=None))]
    for model in models:
        model.to_int8()
    first, second = (tokens(model, 3, kv="int8") for model in models)
    assert first == second


def test_records_are_of_few_sequences():
    events: list[str] = []
    model = decoder(qwen3_like(), replace(CPU, capture=counted(events)))
    expected = tokens(decoder(qwen3_like(), replace(CPU, capture=None)), MOST_RECORDED + 1)
    assert tokens(model, MOST_RECORDED + 1) == expected
    assert events.count("recorded") == MOST_RECORDED


def test_a_step_that_torch_has_a_part_in_is_not_recorded():
    events: list[str] = []
    ops = replace(CPU, capture=counted(events), swiglu=lambda gate, up: gate.sigmoid() * gate * up)
    plain = decoder(qwen3_like(), replace(ops, capture=None))
    assert tokens(decoder(qwen3_like(), ops), 2) == tokens(plain, 2)
    assert events == ["refused"]


def test_weights_changed_in_place_and_hooks_are_seen():
    model = decoder(qwen3_like())
    engine = build(model)
    ids = engine.add(Request([1, 2, 3], SamplingParams(temperature=0, max_tokens=NEW)))
    for _ in range(4):
        engine.step()
    seen = []
    handle = model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    engine.step()
    assert seen == [1]
    handle.remove()
    engine.step()
    assert seen == [1]
    # The largest logit of an unembedding in which one row is all that is left.
    weight = model.unembedding.weight
    hidden = []
    handle = model.norm.register_forward_hook(lambda _, __, out: hidden.append(out.clone()))
    engine.step()
    handle.remove()
    weight.zero_()
    weight[11] = hidden[0].sign()[0] * 100
    weight[12] = -weight[11]
    found = engine.step()[0]
    assert found.request_id == ids
    assert found.token in (11, 12)


def test_a_recording_is_of_one_thread_and_one_at_a_time():
    from ossia.ops._native import Recording

    outer = Recording()
    outer.begin()
    with pytest.raises(ValueError, match="under way"):
        Recording().begin()
    outer.end()
    assert outer.size == 0
    Recording().run()
