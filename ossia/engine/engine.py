"""Ids in, ids out: many requests decoded together over one paged cache."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import TYPE_CHECKING

import torch

from ossia.engine.pages import PageAllocator, plan_pages
from ossia.engine.request import (
    Request,
    Result,
    TokenOutput,
    check_prompt,
    check_vocabulary,
)
from ossia.engine.runner import Runner
from ossia.engine.sampler import Sampler, SamplerState
from ossia.engine.scheduler import Scheduler, Sequence
from ossia.errors import OssiaError
from ossia.ops.paged import PagePool

if TYPE_CHECKING:
    from ossia.model import Decoder


class Engine:
    """Decodes up to `max_batch` requests together; more wait their turn.

    max_tokens_kv: positions the cache holds over all requests, rounded up to whole pages; by
        default as much as all could ever need, or as half of the memory holds.
    prefill_chunk: prompt tokens read in one step; smaller chunks make smoother streams and a
        slower start.
    kv: how keys and values are stored: None is the decoder's dtype; "int8" takes half of bfloat16's
        memory and changes the numbers (docs/cpu.md says by how much).

    Not thread-safe: one thread adds, steps and aborts.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_tokens_kv: int | None = None,
        page_size: int = 16,
        prefill_chunk: int = 512,
        max_batch: int = 16,
        kv: str | None = None,
    ) -> None:
        for name, value in (
            ("max_tokens_kv", max_tokens_kv),
            ("page_size", page_size),
            ("prefill_chunk", prefill_chunk),
            ("max_batch", max_batch),
        ):
            if value is not None and value < 1:
                raise OssiaError(f"{name} must be at least 1, not {value}")
        if kv not in (None, "int8"):
            raise OssiaError(f"unknown format {kv!r} of keys and values; there is: int8")
        dtype = torch.int8 if kv == "int8" else decoder.dtype
        self.config = decoder.config
        num_pages = plan_pages(
            decoder.layer_kinds,
            self.config.context_length,
            max_tokens=max_tokens_kv,
            page_size=page_size,
            chunk=prefill_chunk,
            max_sequences=max_batch,
            dtype=dtype,
            device=decoder.device,
        )
        pool = PagePool(
            decoder.layer_kinds,
            num_pages,
            page_size=page_size,
            dtype=dtype,
            device=decoder.device,
        )
        self.pages = PageAllocator(
            num_pages,
            page_size=page_size,
            chunk=prefill_chunk,
            max_sequences=max_batch,
            context_length=self.config.context_length,
        )
        self.scheduler = Scheduler(self.pages, prefill_chunk=prefill_chunk, max_batch=max_batch)
        self.runner = Runner(decoder, pool, self.pages)
        self.sampler = Sampler()
        self._ids = count()

    @property
    def has_work(self) -> bool:
        """Whether a request is running or waiting."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    def add(self, request: Request) -> int:
        """Queue a request; the id that its outputs will carry.

        Raises OssiaError for a request that the model or the cache can never serve.
        """
        check_prompt(request.prompt, self.config.vocab_size, self.config.context_length)
        check_vocabulary(request.sampling, self.config.vocab_size)
        request_id = next(self._ids)
        self.scheduler.waiting.append(
            Sequence(
                request_id,
                list(request.prompt),
                self._max_length(request),
                request.sampling.stop_ids,
                SamplerState(
                    request_id,
                    request.sampling,
                    request.prompt,
                    request.constraint() if request.constraint else None,
                ),
            )
        )
        return request_id

    @torch.inference_mode()
    def step(self) -> list[TokenOutput]:
        """Run one forward pass; one output for each request that got a token.

        Raises a RequestError, which names the request, if its logits are not numbers or its
        constraint leaves no id. Nothing has been booked then: abort that request, and the next
        step carries on with the others.
        """
        batch = self.scheduler.schedule()
        if not batch:
            return []
        logits = self.runner.run(batch)
        states = [chunk.sequence.sampler for chunk in batch if chunk.samples]
        samples = self.sampler.sample(logits, states)
        return self.scheduler.update(batch, samples)

    def abort(self, request_id: int) -> None:
        """Drop a request and free its pages; nothing happens if it has already finished."""
        self.scheduler.remove(request_id)

    def generate(self, requests: Iterable[Request]) -> list[Result]:
        """Serve all requests to their ends; results in the order of the requests.

        For an idle engine: outputs of requests added before would be lost.
        """
        if self.has_work:
            raise RuntimeError("generate() needs an idle engine; with others at work, add and step")
        outputs: dict[int, list[TokenOutput]] = {}
        try:
            for request in requests:
                outputs[self.add(request)] = []
            while self.has_work:
                for output in self.step():
                    outputs[output.request_id].append(output)
        finally:
            for request_id in outputs:
                self.abort(request_id)
        return [Result(tuple(tokens)) for tokens in outputs.values()]

    def _max_length(self, request: Request) -> int:
        """The tokens, prompt and output, after which a request ends: within context and cache."""
        prompt, wanted = len(request.prompt), request.sampling.max_tokens
        held = self.pages.most_positions
        if wanted is None:
            # The last token needs no place; at least one is wanted, even if it does not fit.
            length = min(self.config.context_length, max(held, prompt) + 1)
        else:
            length = min(self.config.context_length, prompt + wanted)
        if length - 1 > held:
            raise OssiaError(
                f"a prompt of {prompt} ids and up to {length - prompt} new ones do not fit the "
                f"cache of {held} positions: lower max_tokens, shorten the prompt or raise "
                "max_tokens_kv"
            )
        return length
