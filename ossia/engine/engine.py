"""Ids in, ids out: many requests decoded together over one paged cache."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ossia.engine.capacity import (
    CHUNK,
    CPU_BATCH,
    GPU_BATCH,
    LARGE_CHUNK,
    kv_budget,
    kv_dtype,
    plan_pages,
    shares,
)
from ossia.engine.draft_model import speculation
from ossia.engine.faults import lost, out_of_memory
from ossia.engine.kv import CacheLimits, KVCache, PageCounts, PagedText
from ossia.engine.logprobs import PromptScores
from ossia.engine.ranks import Leader
from ossia.engine.request import (
    Failure,
    Output,
    PromptOutput,
    Request,
    RequestError,
    Result,
    TokenOutput,
    check_prompt,
    check_vocabulary,
)
from ossia.engine.runner import Computed, Runner
from ossia.engine.sampler import Drawn, LogitsError, Sample, Sampler
from ossia.engine.sampler_state import SamplerState
from ossia.engine.scheduler import Chunk, Scheduler, Sequence
from ossia.engine.staging import sent
from ossia.errors import OssiaError
from ossia.ops.paged import LayerKind, PagePool
from ossia.options import EngineOptions
from ossia.system.gpu import ran_out
from ossia.system.memory import format_size

if TYPE_CHECKING:
    from ossia.model import Decoder


_LEAST_CHUNK = 32  # tokens of prompts, fewer of which would take hardly less memory

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineStats:
    """An engine's figures, at one moment and since it was made.

    prefix_queries: tokens of all admitted prompts; prefix_hits: those of them that the prefix cache
    had. evictions: cached pages given up for memory. preemptions: requests that gave up their pages
    to older ones and were computed again. drafted_tokens, accepted_tokens: by speculation, those
    that a step verified, and those of them that were what was sampled.
    """

    running: int
    waiting: int
    pages: Mapping[LayerKind, PageCounts]
    prefix_queries: int
    prefix_hits: int
    evictions: int
    preemptions: int
    generated_tokens: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Flight(NamedTuple):
    """A step that was launched, and may still run."""

    step: list[Chunk]
    computed: Computed
    drawn: Drawn


class Engine:
    """Decodes up to `max_batch` requests together; more wait their turn.

    draft: a smaller model of the same vocabulary, which drafts tokens (`ossia.engine.draft`).
    leader: of the processes among which the decoder is divided (`ossia.engine.ranks`).

    Not thread-safe: one thread adds, steps and aborts. Raises OssiaError for options that this
    decoder or this machine cannot meet.
    """

    def __init__(
        self,
        decoder: Decoder,
        options: EngineOptions | None = None,
        *,
        draft: Decoder | None = None,
        leader: Leader | None = None,
    ) -> None:
        options = options or EngineOptions()
        on_gpu = decoder.device.type == "cuda"
        self.config, self._device = decoder.config, decoder.device
        self.max_batch = options.max_batch or (GPU_BATCH if on_gpu else CPU_BATCH)
        large_chunks = on_gpu or decoder.fetches_experts
        self.prefill_chunk = options.prefill_chunk or (LARGE_CHUNK if large_chunks else CHUNK)
        dtype = kv_dtype(options, decoder.dtype)
        speculates = draft is not None or options.speculate is not None
        limits = CacheLimits(
            options.page_size,
            max(self.prefill_chunk, 1 + options.speculate_tokens * speculates),
            self.max_batch,
            self.config.context_length,
        )
        budget = kv_budget(decoder, options.kv_memory, dtype)
        budget //= 1 if leader is None else leader.sharing
        budget, draft_budget = shares(budget, decoder, draft)
        num_pages = plan_pages(decoder.layer_kinds, budget, limits, dtype)
        try:
            pool = PagePool(
                decoder.layer_kinds,
                num_pages,
                page_size=options.page_size,
                dtype=dtype,
                device=decoder.device,
            )
            self.speculation = speculation(decoder, draft, options, limits, draft_budget)
        except RuntimeError as error:  # torch's, when an allocation fails
            raise OssiaError(
                f"no {format_size(budget)} for keys and values on {decoder.device}: lower kv_memory"
            ) from error
        self.kv = KVCache(num_pages, limits, prefix_cache=options.prefix_cache)
        self.scheduler = Scheduler(
            self.kv,
            prefill_chunk=self.prefill_chunk,
            max_batch=self.max_batch,
            speculation=self.speculation,
        )
        self.runner = Runner(decoder, pool, self.kv, leader)
        self.sampler = Sampler(decoder.ops)
        # Whether a step is launched before the one before it is read, where that is possible.
        self.ahead = on_gpu
        self._flight: Flight | None = None
        self._ids = count()
        self._generated = 0

    @property
    def has_work(self) -> bool:
        """Whether a request is running or waiting."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    @property
    def kv_bytes(self) -> int:
        """The memory that keys and values take once all pages are written, those of a draft model
        included.
        """
        return self.runner.pool.nbytes + (self.speculation.kv_bytes if self.speculation else 0)

    @property
    def max_length(self) -> int:
        """The most tokens, prompt and output, of any text: the model's context, or if less the
        longest text that the cache can hold on its own, plus the last token, which is not stored.
        """
        return min(self.config.context_length, self.kv.most_positions + 1)

    def check(self, request: Request) -> None:
        """Raise OssiaError for a prompt that the model or the cache can never hold, and for ids
        outside the vocabulary. Safe to call in any thread.
        """
        answered = request.sampling.max_tokens != 0
        vocab_size, length = self.config.vocab_size, len(request.prompt)
        check_prompt(request.prompt, vocab_size, self.config.context_length, answered=answered)
        check_vocabulary(request.sampling, vocab_size)
        most = self.max_length - 1 if answered else self.kv.most_positions
        if length > most:
            raise OssiaError(
                f"the prompt has {length:,} tokens, and the cache holds {most:,}: shorten the "
                "prompt or raise kv_memory"
            )

    def add(self, request: Request) -> int:
        """Queue a request; the id that its outputs will carry. Raises OssiaError as `check`.

        A request ends at `max_length` with finish reason "length", however large its `max_tokens`.
        """
        self.check(request)
        if not self.has_work:
            self.scheduler.prefill_chunk = self.prefill_chunk
        prompt, sampling, max_length = list(request.prompt), request.sampling, self.max_length
        if sampling.max_tokens is not None:
            max_length = min(max_length, len(prompt) + sampling.max_tokens)
        request_id = next(self._ids)
        self.scheduler.waiting.append(
            Sequence(
                request_id,
                PagedText(prompt, len(prompt)),
                max_length,
                sampling.stop_ids,
                SamplerState(
                    request_id,
                    sampling,
                    request.prompt,
                    request.constraint() if request.constraint else None,
                ),
                None if sampling.prompt_logprobs is None else PromptScores(prompt, sampling),
            )
        )
        return request_id

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Run one forward pass: an output for each request that got a token, whose prompt has been
        read, if there is something to say of it, or that failed.

        After an exception in the pass each of its requests has a pass of its own, and those that
        raise again end. Where memory ran out, prompts are first read in smaller chunks. Non-finite
        logits, or a constraint that allows no id, end only the request concerned; the others repeat
        the step. Raises DeviceLost if there is no device any more.
        """
        flight, self._flight = self._flight, None
        if flight is not None and any(chunk.sequence.running for chunk in flight.step):
            return self._land(flight)
        try:
            return self._run(self.scheduler.schedule())
        except RuntimeError as error:  # of a draft model
            if (end := lost(error, self._device)) is not None:
                raise end from error
            if ran_out(error):
                raise out_of_memory(self._device) from error
            raise

    def _run(self, step: list[Chunk]) -> list[Output]:
        if not step:
            return []
        try:
            flight = self._launch(step)
        except Exception as error:
            return self._recover(step, error)
        return self._land(flight)

    def _launch(self, step: list[Chunk], tokens: Tensor | None = None) -> Flight:
        """Have the device run a step. tokens: as of Runner.run."""
        computed = self.runner.run(step, tokens)
        _check_scores(step, computed)
        states = [state for chunk in step for state in chunk.samplers]
        ahead = 0 if tokens is None else 1
        return Flight(step, computed, self.sampler.draw(computed.logits, states, ahead))

    def _following(self, flight: Flight) -> Flight | None:
        """The step after one that may still run, launched, so that the device never waits for the
        host; None if it has to.
        """
        if not self.ahead:
            return None
        step = self.scheduler.ahead(flight.step)
        if not step or not self.runner.knows(len(step)):
            return None
        ids, rows = flight.drawn.ids, [*step]
        if len(rows) < len(ids):
            ids = ids[sent(rows, torch.int64, ids.device)]
        return self._launch([*step.values()], ids)

    def _land(self, flight: Flight) -> list[Output]:
        """The outputs of a step that was launched, after the next one was. A text that has ended
        since has no use for its token.
        """
        step, computed, drawn = flight
        unused = {i for i, chunk in enumerate(step) if not chunk.sequence.running}
        try:
            self._flight = self._following(flight)
            logits = computed.logits if self._flight is None else None
            samples = self.sampler.finish(drawn, logits, unused)
        except Exception as error:
            self._flight = None
            return self._recover([c for i, c in enumerate(step) if i not in unused], error)
        if unused:  # each chunk has one sample
            used = [i for i in range(len(step)) if i not in unused]
            step, samples = [step[i] for i in used], [samples[i] for i in used]
            computed = computed._replace(scores=[computed.scores[i] for i in used])
        return self._commit(step, samples, computed)

    def _recover(self, step: list[Chunk], error: Exception) -> list[Output]:
        """What follows an error in a step; see `step`."""
        if isinstance(error, RequestError):
            return self._fail([error.request_id], error)
        if (end := lost(error, self._device)) is not None:
            raise end from error
        if ran_out(error):
            if self._shorten(step):
                return []
            error = out_of_memory(self._device)
        if len(step) == 1:
            return self._fail([step[0].sequence.id], error)
        return [output for chunk in step for output in self._run([chunk.known])]

    def abort(self, request_id: int) -> None:
        """Drop a request and free its pages; nothing happens if it has already finished."""
        self.scheduler.remove(request_id)

    def stats(self) -> EngineStats:
        """The figures of this moment."""
        scheduler, stores = self.scheduler, self.kv.stores
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            pages={store.kind: store.counts for store in stores},
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            evictions=sum(store.evictions for store in stores),
            preemptions=scheduler.preemptions,
            generated_tokens=self._generated,
            drafted_tokens=self.speculation.drafted if self.speculation else 0,
            accepted_tokens=self.speculation.accepted if self.speculation else 0,
        )

    def generate(self, requests: Iterable[Request]) -> list[Result]:
        """Serve all requests to their ends; results in the order of the requests.

        For an idle engine: outputs of requests added before would be lost. Raises the error of the
        first request that fails.
        """
        if self.has_work:
            raise RuntimeError("generate() needs an idle engine; with others at work, add and step")
        outputs: dict[int, list[TokenOutput]] = {}
        prompts: dict[int, PromptOutput] = {}
        try:
            for request in requests:
                outputs[self.add(request)] = []
            while self.has_work:
                for output in self.step():
                    if isinstance(output, Failure):
                        raise output.error
                    if isinstance(output, PromptOutput):
                        prompts[output.request_id] = output
                    else:
                        outputs[output.request_id].append(output)
        finally:
            for request_id in outputs:
                self.abort(request_id)
        return [Result(tuple(tokens), prompts.get(id)) for id, tokens in outputs.items()]

    def _commit(self, step: list[Chunk], samples: list[Sample], computed: Computed) -> list[Output]:
        remaining = iter(samples)
        sampled = [[*islice(remaining, chunk.wanted)] for chunk in step]
        outputs = self.scheduler.commit(step, sampled, computed.scores)
        self._generated += sum(isinstance(output, TokenOutput) for output in outputs)
        return [*outputs]

    def _shorten(self, step: list[Chunk]) -> bool:
        """Read prompts in smaller chunks until the engine rests, because the device had no memory
        for this step; False if they are as small as can be.
        """
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        tokens = sum(len(chunk.tokens) for chunk in step if len(chunk.tokens) > chunk.wanted)
        if tokens <= _LEAST_CHUNK:
            return False
        smaller = self.scheduler.prefill_chunk = max(_LEAST_CHUNK, tokens // 2)
        _log.warning(
            "the memory of %s ran out: prompts are read %d tokens at a time, as long as it is so",
            self._device,
            smaller,
        )
        return True

    def _fail(self, request_ids: list[int], error: Exception) -> list[Output]:
        for request_id in request_ids:
            self.scheduler.remove(request_id, forget=True)
        return [Failure(request_id, error) for request_id in request_ids]


def _check_scores(step: list[Chunk], computed: Computed) -> None:
    """Raise LogitsError for the first prompt of which a token has no log-probability."""
    for chunk, scores in zip(step, computed.scores, strict=True):
        if any(math.isnan(score.logprob) for score in scores):
            raise LogitsError(chunk.sequence.id)
