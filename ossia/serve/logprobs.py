"""The log-probabilities of the tokens that an answer's text is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ossia.api import AsyncStream
from ossia.engine import TokenOutput
from ossia.serve.rounds import Rounds
from ossia.text import Channel, Tokenizer

SHOWN = (Channel.FINAL, Channel.PREAMBLE)
LEAST = -9999.0  # for a probability of 0, whose logarithm JSON cannot write


class ShownTokens:
    """The tokens of a stream's shown text, as the text comes. Those of a stop string belong to no
    text, so that they are never given.
    """

    def __init__(self, stream: AsyncStream | Rounds) -> None:
        self._stream, self._seen = stream, 0

    def take(self) -> Iterator[TokenOutput]:
        """Those since the last call, for the text that has just been shown."""
        outputs, channels = self._stream.outputs, self._stream.channels
        begin, self._seen = self._seen, len(outputs)
        for output, channel in zip(outputs[begin:], channels[begin:], strict=True):
            if channel in SHOWN:
                yield output

    def rest(self, reason: str) -> Iterator[TokenOutput]:
        """At the end of a bare continuation: tokens without text, such as the one that ended it.
        Evaluations that ask for one token count on it.
        """
        outputs = self._stream.outputs
        begin, self._seen = self._seen, len(outputs)
        if outputs and outputs[-1].finish_reason == reason:  # not ended by a stop string
            yield from outputs[begin:]


def finite(logprob: float | None) -> float:
    """A log-probability as JSON writes it."""
    return LEAST if logprob is None else max(logprob, LEAST)


def written(shown: ShownTokens, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The tokens of the text that has just been shown, as Chat Completions and Responses write
    them.
    """
    return [
        {
            **_token(output.token, output.logprob, tokenizer),
            "top_logprobs": [
                _token(*alternative, tokenizer) for alternative in output.top_logprobs
            ],
        }
        for output in shown.take()
    ]


def _token(token: int, logprob: float | None, tokenizer: Tokenizer) -> dict[str, Any]:
    data = tokenizer.token_bytes(token)
    text = data.decode("utf-8", "replace")
    return {"token": text, "logprob": finite(logprob), "bytes": [*data]}
