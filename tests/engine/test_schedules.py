"""Random schedules on real decoders in float32: whatever is cached, preempted, chunked, batched or
aborted, each request gets the greedy tokens of plain forward passes, and no page is lost or wrongly
shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.config import ModelConfig
from ossia.engine import Engine, Request, SamplingParams, TokenOutput
from ossia.engine.runner import Computed
from ossia.engine.scheduler import Chunk
from ossia.model import Decoder
from ossia.ops import select
from tests.engine.engines import engine as build
from tests.engine.invariants import assert_all_free, check
from tests.models import gpt2_like, gpt_oss_like, qwen3_moe_like

BASES = 3  # texts that prompts are cut from
VOCAB = 97  # of ids in prompts: that of the smallest model
LONGEST = 55  # of prompts; contexts are of 90 and more


@dataclass(frozen=True)
class Ask:
    """A request: the first `shared` ids of a base text, then ids of its own."""

    base: int
    shared: int
    own: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True)
class Continue:
    """A request that continues a finished one, as a conversation does: all of its text but the
    first `dropped` tokens of its reply, then ids of its own.
    """

    dropped: int
    own: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True)
class Abort:
    which: int


@dataclass(frozen=True)
class Steps:
    count: int


@dataclass(frozen=True)
class Schedule:
    positions: int
    page_size: int
    prefill_chunk: int
    max_batch: int
    prefix_cache: bool
    events: tuple[Ask | Continue | Abort | Steps, ...]


OWN = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8).map(tuple)
NEW = st.integers(1, 30)
EVENTS = st.one_of(
    st.builds(Ask, st.integers(0, BASES - 1), st.sampled_from([0, 24, 40]), OWN, NEW),
    st.builds(Continue, st.integers(0, 8), OWN, NEW),
    st.builds(Abort, st.integers(0, 9)),
    st.builds(Steps, st.integers(1, 12)),
)
SCHEDULES = st.builds(
    Schedule,
    positions=st.integers(60, 130),
    page_size=st.integers(1, 9),
    prefill_chunk=st.integers(1, 40),
    max_batch=st.integers(2, 5),
    prefix_cache=st.sampled_from([True, True, True, False]),
    events=st.lists(EVENTS, min_size=8, max_size=20).map(tuple),
)


def decoder(config: ModelConfig, backend: str) -> Decoder:
    generator = torch.Generator().manual_seed(0)
    model = Decoder(config, select(backend)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        # Large weights and small biases, so that what is written depends on what is read.
        parameter.normal_(0, 0.1 if name.endswith("bias") else 1.0, generator=generator)
    return model


class Run:
    """A schedule at work, and what it must give."""

    ahead = False
    launched = 0  # steps of all runs before the ones before them were read

    def __init__(self, model: Decoder, reference: Decoder, schedule: Schedule) -> None:
        generator = torch.Generator().manual_seed(1)
        self.bases = torch.randint(0, VOCAB, (BASES, LONGEST), generator=generator).tolist()
        self.reference = reference
        self.engine: Engine = build(
            model,
            schedule.positions,
            page_size=schedule.page_size,
            prefill_chunk=schedule.prefill_chunk,
            max_batch=schedule.max_batch,
            prefix_cache=schedule.prefix_cache,
        )
        self.engine.ahead = self.ahead
        run = self.engine.runner.run

        def counted(step: list[Chunk], tokens: Tensor | None = None) -> Computed:
            Run.launched += tokens is not None
            return run(step, tokens)

        self.engine.runner.run = counted  # type: ignore[method-assign]
        self.asked: dict[int, tuple[list[int], int]] = {}
        self.outputs: dict[int, list[int]] = {}
        self.finished: list[tuple[list[int], list[int]]] = []

    def play(self, event: Ask | Continue | Abort | Steps) -> None:
        if isinstance(event, Ask):
            self.add([*self.bases[event.base][: event.shared], *event.own], event.max_tokens)
        elif isinstance(event, Continue) and self.finished:
            prompt, reply = self.finished[-1]
            self.add([*prompt, *reply[event.dropped :], *event.own], event.max_tokens)
        elif isinstance(event, Abort) and self.outputs:
            request_id = sorted(self.outputs)[event.which % len(self.outputs)]
            self.engine.abort(request_id)
            self.compare(request_id, whole=False)
        elif isinstance(event, Steps):
            for _ in range(event.count):
                self.step()

    def add(self, prompt: list[int], max_tokens: int) -> None:
        if len(prompt) < min(LONGEST, self.engine.max_length):
            sampling = SamplingParams(temperature=0, max_tokens=max_tokens)
            request_id = self.engine.add(Request(prompt, sampling))
            self.asked[request_id] = prompt, max_tokens
            self.outputs[request_id] = []

    def step(self) -> None:
        outputs = self.engine.step()
        check(self.engine)
        for output in outputs:
            assert isinstance(output, TokenOutput), output
            self.outputs[output.request_id].append(output.token)
            if output.finish_reason:
                self.compare(output.request_id, whole=True)

    def compare(self, request_id: int, whole: bool) -> None:
        """The tokens so far are those that one plain pass over them finds most likely."""
        (prompt, max_tokens), reply = self.asked[request_id], self.outputs.pop(request_id)
        if whole:
            assert len(reply) == min(max_tokens, self.engine.max_length - len(prompt))
            self.finished.append((prompt, reply))
        with torch.inference_mode():
            logits = self.reference(torch.tensor([[*prompt, *reply]]))[0]
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == reply

    def finish(self) -> None:
        while self.engine.has_work:
            self.step()
        assert not self.outputs
        assert_all_free(self.engine)


@pytest.mark.parametrize(
    ("config", "backend", "ahead"),
    [
        (gpt_oss_like, "reference", False),
        (gpt_oss_like, "auto", False),
        (gpt_oss_like, "auto", True),
        (qwen3_moe_like, "auto", False),
        (gpt2_like, "auto", True),
    ],
)
def test_any_schedule_gives_the_tokens_of_plain_passes(
    config: Callable[[], ModelConfig], backend: str, ahead: bool, monkeypatch
) -> None:
    """ahead: steps are launched before the ones before them are read."""
    monkeypatch.setattr(Run, "ahead", ahead)
    monkeypatch.setattr(Run, "launched", 0)
    model, reference = decoder(config(), backend), decoder(config(), "reference")
    seen: Counter[str] = Counter()

    # The same schedules every time: an endless search would find logits so nearly equal that
    # rounding decides between them.
    @seed(12)
    @settings(max_examples=40)
    @given(SCHEDULES)
    def play(schedule: Schedule) -> None:
        run = Run(model, reference, schedule)
        for event in schedule.events:
            run.play(event)
        run.finish()
        stats = run.engine.stats()
        seen.update(
            finished=len(run.finished),
            hits=stats.prefix_hits,
            preemptions=stats.preemptions,
            evictions=stats.evictions,
        )

    play()
    # The schedules are of use only if all this happened in them.
    assert seen["finished"] > 60
    assert (Run.launched > 300) == (ahead and model.ops.recorder() is not None)
    assert seen["hits"] > 100
    assert seen["preemptions"] > 3
    assert seen["evictions"] > 50
