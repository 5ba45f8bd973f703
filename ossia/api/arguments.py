"""What a call of an LLM may be given beside a conversation, and the checks of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from ossia import text
from ossia.errors import OssiaError


class Sampling(TypedDict, total=False):
    """How to draw tokens. What is absent or None comes from the checkpoint's
    generation_config.json, else from `SamplingParams`.

    max_tokens: None is up to the end of the context, 0 only reads the prompt. stop: strings that
    end the text and are not part of it; in a chat they are looked for in the answer, not in the
    reasoning. ignore_eos: go on past the model's own end of text (for benchmarks).
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
    prompt_logprobs: int | None
    prompt_logprobs_from: int | None
    logit_bias: Mapping[int, float] | None
    stop: str | Sequence[str] | None
    ignore_eos: bool


class TextOptions(Sampling, total=False):
    """What a continuation may set: how tokens are drawn, and the form of the text."""

    response_format: Mapping[str, Any] | None
    structured_outputs: Mapping[str, Any] | None


class ChatOptions(TextOptions, total=False):
    """What a chat may set beside its tools, effort, thinking and date; see `LLM.stream`."""

    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    instructions: str | None
    built_in: Sequence[text.ToolNamespace]


def stop_strings(stop: object) -> tuple[str, ...]:
    """The strings that end a text. Raises OssiaError for what is not a string or several."""
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, list | tuple | set | frozenset) or not all(
        isinstance(string, str) for string in strings
    ):
        raise OssiaError(f"stop must be a string or a list of strings, not {stop!r}")
    return tuple(strings)


def several_prompts(
    prompts: str | Sequence[str] | Sequence[Sequence[int]],
) -> Sequence[str] | Sequence[Sequence[int]]:
    """Prompts as a list. Raises OssiaError for what is neither a text nor several prompts."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise OssiaError(f"prompts are a text or a list of texts or ids, not {prompts!r}")
    return prompts
