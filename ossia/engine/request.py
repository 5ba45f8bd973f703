"""What is asked of the engine and what it answers: ids and numbers, checked where they enter."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ossia.errors import OssiaError, shortened

FinishReason = Literal["stop", "length"]


class RequestError(OssiaError):
    """An error of one request; the others of its step are sound."""

    def __init__(self, request_id: int, message: str) -> None:
        super().__init__(message)
        self.request_id = request_id


class Constraint(Protocol):
    """What may come next in one request's output: a grammar, a schema, a list of choices."""

    def mask(self, bits: memoryview) -> None:
        """Set the bits of the ids that are allowed next; they are 0 when this is called.

        bits: ceil(vocab / 32) unsigned words of 32 bits; id i is bit i % 32 of word i // 32, with
            bit 0 the lowest. Bits after the vocabulary are ignored.
        """
        ...

    def accept(self, ids: Sequence[int]) -> None:
        """Advance by ids of the output, in order."""
        ...

    def copy(self) -> Constraint:
        """An independent constraint in the same state."""
        ...


_NUMBERS = {
    "temperature": (0.0, math.inf),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_OPTIONAL_INTEGERS = {
    "seed": (-(2**63), 2**63 - 1),
    "logprobs": (0, None),
    "prompt_logprobs": (0, None),
    "max_tokens": (0, None),
}


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen from the logits, and when to stop. Applied in this order:

    logit_bias: added to the logits of these ids, -100 to 100 (the OpenAI API's range).
    repetition_penalty: logits of ids in the prompt or the output are divided by it where positive
        and multiplied where negative (CTRL, https://arxiv.org/abs/1909.05858); 1 is off.
    presence_penalty, frequency_penalty: subtracted from the logits of ids already in the
        output: presence once, frequency once per occurrence (the OpenAI API's definition), -2 to 2.
    temperature: the logits are divided by it; 0 takes the largest (greedy).
    top_k: only the k most likely ids; 0 is off.
    top_p: only the smallest set of most likely ids whose probability (after top_k) is at least p.
    min_p: only ids at least p times as probable as the most likely one.

    seed: the same seed and request give the same tokens, whatever else is in the batch.
    logprobs: report the chosen token's log-probability and those of the n most likely ids. They are
        the model's own: the log-softmax of its logits before everything above.
    prompt_logprobs: report the same of each token of the prompt, given those before it, and of the
        n most likely ids in its place; of the tokens from position `prompt_logprobs_from` on, at
        least 1, because nothing precedes the first. Keys and values of earlier texts are reused
        only up to that position.
    stop_ids: the request ends with the first of these, which is delivered as its last token.
    max_tokens: the most tokens to generate; None means up to the end of the context, and 0 that the
        prompt is only read.

    Numbers may be of any type that is one: whole floats where an integer is meant, scalars of numpy
    and torch, ids as the strings that are the keys of JSON. They are stored as Python's own. Raises
    OssiaError for a value that is none, or out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprobs_from: int = 1
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop_ids: frozenset[int] = frozenset()
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        values: dict[str, Any] = {
            name: _number(name, getattr(self, name), *bounds) for name, bounds in _NUMBERS.items()
        }
        if values["top_p"] == 0.0:
            raise OssiaError(
                "top_p must be above 0; for the most likely token set temperature to 0"
            )
        top_k = _integer("top_k", self.top_k, -1)
        values["top_k"] = max(top_k, 0)  # other programs write off as -1
        first = _integer("prompt_logprobs_from", self.prompt_logprobs_from, 1)
        values["prompt_logprobs_from"] = first
        for name, bounds in _OPTIONAL_INTEGERS.items():
            if (value := getattr(self, name)) is not None:
                values[name] = _integer(name, value, *bounds)
        values["logit_bias"] = _biases(self.logit_bias)
        values["stop_ids"] = frozenset(
            _integer("an id of stop_ids", token, 0) for token in self.stop_ids
        )
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def greedy(self) -> bool:
        """Below 1e-5 a temperature is a 0 that went through arithmetic."""
        return self.temperature < 1e-5


@dataclass(frozen=True)
class Request:
    """Continue `prompt`, a list of ids.

    constraint: makes the constraint that the output follows, in its initial state.
    """

    prompt: Sequence[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    constraint: Callable[[], Constraint] | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """The natural log of a token's probability, and the most likely ids in its place as (id,
    log-probability) pairs, the most likely first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class PromptOutput:
    """A request's prompt has been read: the first output of a request that asked for
    `prompt_logprobs`, and the only one of a request with a `max_tokens` of 0, which has a
    `finish_reason` then.

    logprobs: of each token from position `prompt_logprobs_from` on; empty if not asked for.
    """

    request_id: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    cached_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True)
class TokenOutput:
    """One new token of a request; `finish_reason` is set on its last.

    logprob, and top_logprobs as (id, log-probability) pairs with the most likely first, are there
    if `SamplingParams.logprobs` asked for them. cached_tokens: how many of the prompt's tokens were
    not read, because the prefix cache had them.
    """

    request_id: int
    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    cached_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Failure:
    """A request ended by an error instead of its last token; it has no further outputs."""

    request_id: int
    error: Exception


Output = PromptOutput | TokenOutput | Failure


@dataclass(frozen=True)
class Result:
    """All outputs of one request, in order. prompt: the one of its prompt, if it had one."""

    outputs: tuple[TokenOutput, ...]
    prompt: PromptOutput | None = None

    @property
    def tokens(self) -> list[int]:
        return [output.token for output in self.outputs]

    @property
    def finish_reason(self) -> FinishReason | None:
        last = self.outputs[-1] if self.outputs else self.prompt
        return None if last is None else last.finish_reason


def check_prompt(
    prompt: Sequence[int], vocab_size: int, context_length: int, *, answered: bool = True
) -> None:
    """Raise OssiaError unless a model of this vocabulary and context can read `prompt`, and, if it
    is to be `answered`, continue it.
    """
    if not len(prompt):
        raise OssiaError("the prompt is empty: give at least one id")
    if not answered and len(prompt) > context_length:
        raise OssiaError(
            f"the prompt has {len(prompt):,} tokens, more than the model's context of "
            f"{context_length:,}; shorten it"
        )
    if answered and len(prompt) >= context_length:
        raise OssiaError(
            f"the prompt has {len(prompt):,} tokens, which leaves no room for an answer in the "
            f"model's context of {context_length:,}; shorten it"
        )
    if {*map(type, prompt)} == {int} and min(prompt) >= 0 and max(prompt) < vocab_size:
        return  # in about half the time that one by one takes, which counts in long prompts
    for position, token in enumerate(prompt):
        if not isinstance(token, int) or isinstance(token, bool):
            raise OssiaError(f"the prompt's element at position {position} is {token!r}, not an id")
        if not 0 <= token < vocab_size:
            raise OssiaError(
                f"id {token} at position {position} of the prompt is outside the vocabulary of "
                f"{vocab_size}: was it encoded with this model's tokenizer?"
            )


def check_vocabulary(sampling: SamplingParams, vocab_size: int) -> None:
    """Raise OssiaError where `sampling` asks for ids outside the vocabulary."""
    for token in sampling.logit_bias:
        if token >= vocab_size:
            raise OssiaError(
                f"logit_bias names id {token}, which is outside the vocabulary of {vocab_size}"
            )
    for name in ("logprobs", "prompt_logprobs"):
        if (wanted := getattr(sampling, name) or 0) > vocab_size:
            raise OssiaError(
                f"{name} asks for {wanted} alternatives from a vocabulary of {vocab_size}"
            )


def _biases(biases: object) -> Mapping[int, float]:
    if not isinstance(biases, Mapping):
        raise OssiaError(f"logit_bias must map ids to numbers, not be {_shown(biases)}")
    found = {}
    for token, bias in biases.items():
        if isinstance(token, str) and token.isdecimal() and len(token) < 19:
            token = int(token)  # the keys of JSON are strings
        token = _integer("an id of logit_bias", token, 0)
        found[token] = _number(f"logit_bias of id {token}", bias, -100.0, 100.0)
    return found


def _number(name: str, value: object, low: float, high: float) -> float:
    """Any type that is a number, as a float within bounds."""
    number = _as_float(value)
    if number is None or not math.isfinite(number):
        raise OssiaError(f"{name} must be a finite number, not {_shown(value)}")
    if not low <= number <= high:
        bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise OssiaError(f"{name} must be {bounds}, not {_shown(value)}")
    return number


def _integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Any type that is a whole number, as an int within bounds."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = _as_float(value)
        number = int(whole) if whole is not None and whole.is_integer() else None
    if number is None:
        raise OssiaError(f"{name} must be an integer, not {_shown(value)}")
    if number < low or (high is not None and number > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise OssiaError(f"{name} must be {bounds}, not {_shown(value)}")
    return number


def _as_float(value: Any) -> float | None:
    """The float that a number of any type stands for; None for what is no number."""
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # arrays of several
        return None


def _shown(value: object) -> str:
    return shortened(" ".join(repr(value).split()))
