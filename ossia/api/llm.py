"""LLM: a checkpoint in, text out; where the engine's ids meet the tokenizer's text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from ossia import checkpoint, text
from ossia.api.reply import Completion, Finished, Reply, ReplyBuilder, TokenLogprob
from ossia.api.stream import PlainText, Pump, Stream
from ossia.engine import Engine, Request, SamplingParams
from ossia.errors import OssiaError
from ossia.offload import ExpertReads, store_of
from ossia.offload.store import ExpertStore
from ossia.options import EngineOptions
from ossia.text import Chat, TextDelta

if TYPE_CHECKING:
    import torch

Messages = Sequence[Mapping[str, Any]]

PACKAGED_MODELS = Path(__file__).parent.parent / "models"


class Sampling(TypedDict, total=False):
    """How to draw tokens. What is absent or None comes from the checkpoint's
    generation_config.json, else from `SamplingParams`.

    max_tokens: None is up to the end of the context. stop: strings that end the text and are not
    part of it; in a chat they are looked for in the answer, not in the reasoning. ignore_eos: go on
    past the model's own end of text (for benchmarks).
    """

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    logprobs: int | None
    logit_bias: Mapping[int, float] | None
    stop: str | Sequence[str] | None
    ignore_eos: bool


class ChatOptions(Sampling, total=False):
    """What a chat may set beside its tools, effort, thinking and date; see `LLM.stream`."""

    tool_choice: str | Mapping[str, Any] | None
    response_format: Mapping[str, Any] | None
    instructions: str | None


class LLM:
    """A checkpoint ready to talk: `generate` continues text, `chat` and `stream` answer messages.

    path_or_hub_name: a checkpoint folder or Hugging Face name; None is the small model inside the
    package. dtype: of the dense weights, the checkpoint's if None. device: "auto", "cpu", "cuda",
    "cuda:1", "mps". load: "map" leaves the weights in the mapped files, "copy" reads them into
    memory (see `checkpoint.load`). expert_memory: bytes, or "12GiB", of MXFP4 experts to hold in
    memory, the others being read from disk when tokens need them; "all" maps them all; None maps
    them if they fit. dense: "int8" quantizes the dense weights. kv: "int8" stores keys and values
    in half the memory, less exactly. Raises OssiaError for what cannot be loaded.
    """

    def __init__(
        self,
        path_or_hub_name: str | Path | None = None,
        *,
        dtype: torch.dtype | str | None = None,
        device: str = "auto",
        backend: str = "auto",
        load: str = "map",
        expert_memory: int | str | None = None,
        dense: str | None = None,
        kv: str | None = None,
    ) -> None:
        folder = packaged_model() if path_or_hub_name is None else checkpoint.find(path_or_hub_name)
        beside = checkpoint.text_folder(folder)
        # Before the weights: what is missing is known at once.
        tokenizer = text.load_tokenizer(beside)
        chat_format = text.load_format(beside, tokenizer)
        file = beside / "generation_config.json"
        defaults = text.read_generation_config(beside)
        try:
            _defaults(defaults)
        except OssiaError as error:
            raise OssiaError(f"{file}: {error}") from error
        decoder = checkpoint.load(
            folder,
            dtype=dtype,
            device=device,
            backend=backend,
            load=load,
            expert_memory=expert_memory,
            dense=dense,
        )
        engine = Engine(decoder, EngineOptions(kv=kv))  # type: ignore[arg-type]
        self._assemble(engine, tokenizer, chat_format, defaults)
        self._expert_store = store_of(decoder)
        self._tokenizer_name = f"{folder}: the tokenizer"

    @classmethod
    def from_parts(
        cls,
        engine: Engine,
        tokenizer: text.Tokenizer,
        chat_format: text.ChatFormat,
        generation_config: Mapping[str, Any] | None = None,
    ) -> Self:
        """An LLM over parts already built: a model just trained, or a scripted engine."""
        llm = cls.__new__(cls)
        llm._assemble(engine, tokenizer, chat_format, generation_config or {})
        return llm

    def _assemble(
        self,
        engine: Engine,
        tokenizer: text.Tokenizer,
        chat_format: text.ChatFormat,
        generation_config: Mapping[str, Any],
    ) -> None:
        self.tokenizer, self.chat_format, self.config = tokenizer, chat_format, engine.config
        self._pump = Pump(engine)
        self._defaults, eos_ids = _defaults(generation_config)
        self._eos_ids = frozenset(self.config.eos_ids) | eos_ids
        self._tokenizer_name = "the tokenizer"
        self._expert_store: ExpertStore | None = None

    @property
    def expert_reads(self) -> ExpertReads | None:
        """What has been asked of experts on disk since the model was loaded; None if all are
        mapped. The difference of two is what was asked between them.
        """
        return None if self._expert_store is None else self._expert_store.reads

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        **sampling: Unpack[Sampling],
    ) -> list[Completion]:
        """The continuation of each prompt (text, or token ids), all made in one batch."""
        params, stop = self._sampling(sampling, self._eos_ids)
        batch = [prompts] if isinstance(prompts, str) else prompts
        streams = [self._continue(prompt, params, stop) for prompt in batch]
        try:
            running = streams
            while running:
                running = [stream for stream in running if stream.advance()]
        finally:
            for stream in streams:
                stream.close()
        return [_completion(stream, params) for stream in streams]

    def stream_text(self, prompt: str | Sequence[int], **sampling: Unpack[Sampling]) -> Stream:
        """The continuation of one prompt as it is made: TextDelta on the final channel, then
        Finished.
        """
        return self._continue(prompt, *self._sampling(sampling, self._eos_ids))

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
        None. instructions: what the developer asks for, before all messages. Raises OssiaError for
        what the model's chat format cannot express, or what could only be guaranteed by
        constrained decoding: tool_choice "required" or a function, and a strict response_format.
        """
        chat = Chat.of(
            messages,
            tools=tools,
            tool_choice=options.pop("tool_choice", None),
            response_format=options.pop("response_format", None),
            reasoning_effort=reasoning_effort,
            thinking=thinking,
            date=date,
            instructions=options.pop("instructions", None),
        )
        prompt = self.chat_format.render(chat)
        self._check_ids(prompt)
        params, stop = self._sampling(options, self._eos_ids | self.chat_format.stop_ids)
        return Stream(self._pump, Request(prompt, params), self.chat_format.parser(prompt), stop)

    def _continue(
        self, prompt: str | Sequence[int], params: SamplingParams, stop: tuple[str, ...]
    ) -> Stream:
        if isinstance(prompt, int):
            raise OssiaError("token ids are given as a list of lists, one list for each prompt")
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
            self._check_ids(ids)
        else:
            ids = list(prompt)
        parser = PlainText(self.tokenizer, params.stop_ids)
        return Stream(self._pump, Request(ids, params), parser, stop)

    def _check_ids(self, ids: Sequence[int]) -> None:
        """Raise OssiaError for an id that the tokenizer has and the model has not."""
        for id in ids:
            if id >= self.config.vocab_size:
                token = self.tokenizer.token_bytes(id).decode(errors="replace")
                raise OssiaError(
                    f"{self._tokenizer_name} gives {token!r} the id {id}, outside the model's "
                    f"vocabulary of {self.config.vocab_size}: they do not belong together"
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
        values: dict[str, Any] = {**self._defaults, **given, "stop_ids": stop_ids}
        strings = (stop,) if isinstance(stop, str) else tuple(stop)  # type: ignore[arg-type]
        return SamplingParams(**values), strings


def packaged_model() -> Path:
    """The folder of the model inside the package."""
    found = sorted(path.parent for path in PACKAGED_MODELS.glob("*/config.json"))
    if not found:
        raise OssiaError(
            f"there is no model inside this installation ({PACKAGED_MODELS} holds none): "
            "name one by its folder or hub name"
        )
    return found[0]


def _completion(stream: Stream, params: SamplingParams) -> Completion:
    pieces, finished = [], None
    for event in stream:
        if isinstance(event, TextDelta):
            pieces.append(event.text)
        elif isinstance(event, Finished):
            finished = event
    assert finished is not None
    logprobs = tuple(
        TokenLogprob(output.token, output.logprob, tuple(output.top_logprobs))
        for output in stream.outputs
        if output.logprob is not None
    )
    return Completion(
        "".join(pieces),
        tuple(output.token for output in stream.outputs),
        finished.reason,
        None if params.logprobs is None else logprobs,
        finished.prompt_tokens,
    )


def _defaults(generation_config: Mapping[str, Any]) -> tuple[dict[str, Any], frozenset[int]]:
    """The sampling values and the ids that end a text of a generation_config.json. Raises
    OssiaError that names the key of a wrong one.
    """
    values = {
        key: value
        for key in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        if (value := generation_config.get(key)) is not None
    }
    SamplingParams(**values)
    if generation_config.get("do_sample") is False:
        values["temperature"] = 0.0
    return values, text.end_of_text_ids(generation_config)
