"""LLM: a checkpoint in, text out; where the engine's ids meet the tokenizer's text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from operator import index
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from ossia import text
from ossia.api.answer import Answer, Ask
from ossia.api.arguments import (
    ChatOptions,
    Sampling,
    TextOptions,
    several_prompts,
    stop_strings,
)
from ossia.api.parts import About, Defaults, Parts
from ossia.api.reply import Completion, Finished, Reply, ReplyBuilder, TokenLogprob
from ossia.api.stream import AsyncStream, Stream, read_all
from ossia.api.watch import Watch
from ossia.engine import Request, SamplingParams
from ossia.engine.driver import Driver, DriverStats
from ossia.engine.request import Constraint
from ossia.engine.worker import Steps
from ossia.errors import OssiaError
from ossia.offload import ExpertReads
from ossia.options import EngineOptions, LoadOptions, split
from ossia.text import Chat, Event, Messages, TextDelta


class LLM:
    """A checkpoint ready to talk: `generate` continues text, `chat` and `stream` answer messages.

    path_or_hub_name: a checkpoint folder or Hugging Face name; None is the small model inside the
    package. options: the fields of `LoadOptions` and of `EngineOptions` (`ossia.options`). parts:
    what `load` and `from_parts` make, instead of both.

    Any thread may use it, and several at a time: their requests run in one batch, on a thread that
    the LLM owns. Raises OssiaError for what cannot be loaded and for unknown options.
    """

    def __init__(
        self,
        path_or_hub_name: str | Path | None = None,
        *,
        parts: Parts | None = None,
        **options: Any,
    ) -> None:
        load, engine = split(options, LoadOptions, EngineOptions)
        if not isinstance(parts, Parts | None):
            raise OssiaError("parts are what LLM.from_parts makes; give a model's name first")
        self._parts = parts or Parts.load(path_or_hub_name, load, engine)
        self.tokenizer, self.chat_format = self._parts.tokenizer, self._parts.chat_format
        self.config = self._parts.driver.config
        self._driver = self._parts.driver
        self._eos_ids = frozenset(self.config.eos_ids) | self._parts.defaults.eos_ids
        self._grammars = text.Grammars(self.tokenizer, self.config.vocab_size)

    @classmethod
    def load(
        cls,
        path_or_hub_name: str | Path | None = None,
        load: LoadOptions = LoadOptions(),
        engine: EngineOptions = EngineOptions(),
    ) -> Self:
        """As the constructor, with options made before."""
        return cls(parts=Parts.load(path_or_hub_name, load, engine))

    @classmethod
    def from_parts(
        cls,
        engine: Steps | Driver,
        tokenizer: text.Tokenizer,
        chat_format: text.ChatFormat,
        generation_config: Mapping[str, Any] | None = None,
    ) -> Self:
        """An LLM over parts already built: a model just trained, or a scripted engine, which only
        this LLM may use from now on.
        """
        driver = engine if isinstance(engine, Driver) else Driver(engine)
        defaults = Defaults.of(generation_config or {})
        return cls(parts=Parts(driver, tokenizer, chat_format, defaults))

    def stats(self) -> DriverStats:
        """Figures of the engine and of the requests before it."""
        return self._driver.stats()

    def close(self) -> None:
        """End all that runs, with an error in each stream, and free the model's memory."""
        self._driver.close()
        self._parts.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def eos_ids(self) -> frozenset[int]:
        """The ids that end a text, by the checkpoint's configs; empty if they name none."""
        return self._eos_ids

    @property
    def about(self) -> About | None:
        """What the model runs on, if it was loaded from a checkpoint."""
        return self._parts.about

    @property
    def expert_reads(self) -> ExpertReads | None:
        """Counters of the experts read from disk since the model was loaded; None if all are
        mapped. The difference of two values counts what happened between them.
        """
        return self._parts.expert_reads()

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        **options: Unpack[TextOptions],
    ) -> list[Completion]:
        """The continuation of each prompt (text, or token ids), all made in one batch.

        response_format, structured_outputs: the form of the whole text, as for `stream`.
        """
        constraint, ends = self._text_constraint(options)
        params, stop = self._sampling(options, ends)
        asks = [
            self._continue(prompt, params, stop, constraint) for prompt in several_prompts(prompts)
        ]
        read = read_all(self._driver, asks)
        return [_completion(answer, events, params) for answer, events in read]

    def logprobs(
        self,
        texts: str | Sequence[str] | Sequence[Sequence[int]],
        *,
        top: int = 0,
        start: int | Sequence[int] = 1,
    ) -> list[tuple[TokenLogprob, ...]]:
        """How likely the model finds each text (or token ids): the log-probability of each of its
        tokens given those before it, and the `top` most likely ids in its place.

        start: the position of the first token that matters, at least 1 because nothing precedes the
        first token; one for all texts, or one for each. The tokens before it are a context, which
        is read once where several texts share it. So the log-likelihood of a continuation is
        `sum(t.logprob for t in llm.logprobs([context + continuation], start=len(context))[0])`.
        """
        batch = [*several_prompts(texts)]
        starts = [*start] if isinstance(start, Sequence) else [start] * len(batch)
        if len(starts) != len(batch):
            raise OssiaError(f"start has {len(starts)} positions for {len(batch)} texts")
        asks = [
            self._continue(
                text,
                SamplingParams(max_tokens=0, prompt_logprobs=top, prompt_logprobs_from=first),
                (),
            )
            for text, first in zip(batch, starts, strict=True)
        ]
        answers = [answer for answer, _ in read_all(self._driver, asks)]
        return [answer.prompt.logprobs if answer.prompt else () for answer in answers]

    def stream_text(self, prompt: str | Sequence[int], **options: Unpack[TextOptions]) -> Stream:
        """The continuation of one prompt as it is made: TextDelta on the final channel, then
        Finished. Options as for `generate`.
        """
        return Stream(self._driver, self.prepare_text(prompt, **options))

    def prepare_text(self, prompt: str | Sequence[int], **options: Unpack[TextOptions]) -> Ask:
        """What `stream_text` would ask of the engine, for `start`."""
        constraint, ends = self._text_constraint(options)
        params, stop = self._sampling(options, ends)
        return self._continue(prompt, params, stop, constraint)

    def chat(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        thinking: bool = True,
        date: str | None = None,
        **options: Unpack[ChatOptions],
    ) -> Reply:
        """The reply to a conversation; arguments as for `stream`."""
        builder = ReplyBuilder()
        for event in self.stream(messages, tools, reasoning_effort, thinking, date, **options):
            builder.add(event)
        return builder.reply()

    def stream(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        thinking: bool = True,
        date: str | None = None,
        **options: Unpack[ChatOptions],
    ) -> Stream:
        """The reply to a conversation as it is made: events, then Finished.

        messages, tools, tool_choice, response_format: as in OpenAI's Chat Completions; an
        assistant message may carry "reasoning" (`Reply.message` does). reasoning_effort: "low",
        "medium" or "high" for models that speak harmony. thinking: False for an answer without
        reasoning, from models that can. date: YYYY-MM-DD, for prompts that name the day; today if
        None. instructions: what the developer asks for, before all messages. built_in: tools that
        gpt-oss was trained to call within its reasoning.

        structured_outputs: the form of the answer by vLLM's parameter, instead of response_format:
        one of json, regex, choice, grammar (Lark) and json_object. parallel_tool_calls: False for
        one call at most. What they, tool_choice and functions with strict: true ask for is
        enforced: other tokens are not sampled. Raises OssiaError for what the model's chat format
        cannot express, and for a schema that cannot be enforced.
        """
        ask = self.prepare(messages, tools, reasoning_effort, thinking, date, **options)
        return Stream(self._driver, ask)

    def astream(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        thinking: bool = True,
        date: str | None = None,
        **options: Unpack[ChatOptions],
    ) -> AsyncStream:
        """`stream` for the running asyncio loop: `async for event in llm.astream(messages)`.

        Cancelling the task that reads it ends the request.
        """
        return self.start(
            self.prepare(messages, tools, reasoning_effort, thinking, date, **options)
        )

    def start(self, ask: Ask) -> AsyncStream:
        """The reply to what `prepare` or `prepare_text` made, for the running asyncio loop. An ask
        may be started several times.
        """
        return AsyncStream(self._driver, ask)

    def prepare(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        thinking: bool = True,
        date: str | None = None,
        **options: Unpack[ChatOptions],
    ) -> Ask:
        """What `stream` would ask of the engine, with the prompt's ids: the part of its work that
        takes a while for a long conversation, and that any thread can do.
        """
        chat = Chat.of(
            messages,
            tools=tools,
            tool_choice=options.pop("tool_choice", None),
            parallel_tool_calls=options.pop("parallel_tool_calls", None),
            response_format=options.pop("response_format", None),
            structured_outputs=options.pop("structured_outputs", None),
            reasoning_effort=reasoning_effort,
            thinking=thinking,
            date=date,
            instructions=options.pop("instructions", None),
            built_in=options.pop("built_in", ()),
        )
        with self._room():
            prompt = self.chat_format.render(chat)
        self._check_ids(prompt)
        params, stop = self._sampling(options, self._eos_ids | self.chat_format.stop_ids)
        grammar = self.chat_format.grammar(chat, prompt)
        constraint = None if grammar is None else self._grammars.constraint(grammar)
        parser = partial(self.chat_format.parser, prompt, chat.offered_tools)
        return Ask(Request(prompt, params, constraint), parser, stop)

    def watch(self) -> Watch:
        """What an x-ray sees of a text as it grows, by a second pass of the model over it."""
        return Watch(self._driver)

    def _text_constraint(
        self, options: TextOptions
    ) -> tuple[Callable[[], Constraint] | None, frozenset[int]]:
        """What holds a continuation to the form that the options ask for, which are taken out, and
        the ids that end it.
        """
        chat = Chat.of(
            (),
            response_format=options.pop("response_format", None),
            structured_outputs=options.pop("structured_outputs", None),
        )
        if chat.structure is None:
            return None, self._eos_ids
        ends = self._eos_ids or self.chat_format.stop_ids  # it has to end
        return self._grammars.constraint(text.plain_grammar(chat.structure, ends)), ends

    def _continue(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        stop: tuple[str, ...],
        constraint: Callable[[], Constraint] | None = None,
    ) -> Ask:
        if isinstance(prompt, int):
            raise OssiaError("token ids are given as a list of lists, one list for each prompt")
        if isinstance(prompt, str):
            with self._room():
                ids = self.tokenizer.encode(prompt)
            self._check_ids(ids)
        elif isinstance(prompt, bytes) or not isinstance(prompt, Iterable):
            raise OssiaError(f"a prompt is a text or a list of ids, not {prompt!r}")
        else:
            ids = [index(id) if hasattr(id, "__index__") else id for id in prompt]
        parser = partial(text.PlainParser, self.tokenizer, params.stop_ids)
        return Ask(Request(ids, params, constraint), parser, stop)

    def _room(self) -> AbstractContextManager[None]:
        """For encoding a prompt, which is counted to its end if it is not far too long, so that an
        error can say how many tokens it has.
        """
        return text.at_most(2 * self.config.context_length + 2**16)

    def _check_ids(self, ids: Sequence[int]) -> None:
        """Raise OssiaError for an id of the tokenizer outside the model's vocabulary."""
        for id in ids:
            if id >= self.config.vocab_size:
                token = self.tokenizer.token_bytes(id).decode(errors="replace")
                raise OssiaError(
                    f"{self._parts.tokenizer_name} gives {token!r} the id {id}, outside the "
                    f"model's vocabulary of {self.config.vocab_size}: they do not belong together"
                )

    def _sampling(
        self, sampling: Sampling, stop_ids: frozenset[int]
    ) -> tuple[SamplingParams, tuple[str, ...]]:
        """The engine's parameters and the stop strings of one call, the checkpoint's defaults under
        the caller's values.
        """
        unknown = sorted(sampling.keys() - Sampling.__annotations__.keys())
        if unknown:
            raise OssiaError(
                f"unknown sampling option {', '.join(unknown)}; "
                f"the options are {', '.join(Sampling.__annotations__)}"
            )
        given = {key: value for key, value in sampling.items() if value is not None}
        stop = given.pop("stop", ())
        if given.pop("ignore_eos", False):
            stop_ids = frozenset()
        values = {**self._parts.defaults.under(given), "stop_ids": stop_ids}
        return SamplingParams(**values), stop_strings(stop)


def _completion(
    answer: Answer, events: Sequence[Event | Finished], params: SamplingParams
) -> Completion:
    finished = next(event for event in events if isinstance(event, Finished))
    logprobs = tuple(
        TokenLogprob(output.token, output.logprob, output.top_logprobs)
        for output in answer.outputs
        if output.logprob is not None
    )
    return Completion(
        "".join(event.text for event in events if isinstance(event, TextDelta)),
        tuple(output.token for output in answer.outputs),
        finished.reason,
        None if params.logprobs is None else logprobs,
        finished.prompt_tokens,
        answer.prompt.logprobs if answer.prompt and params.prompt_logprobs is not None else None,
    )
