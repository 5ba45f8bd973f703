"""`ossia generate`: the continuation of a prompt, as it is made."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli.fields import derived
from ossia.cli.options import ModelOption, given_text, open_llm
from ossia.cli.text import WordWrap, columns, dim, note, visible
from ossia.errors import OssiaError
from ossia.options import EngineOptions, LoadOptions, Option, Options, SamplingOptions

if TYPE_CHECKING:
    from ossia.api import LLM, Finished, Stream


_NO_BASE_MODEL = (
    "the model inside the package only answers questions (ossia chat); a base model that continues "
    "texts is --model openai-community/gpt2"
)


@dataclass(frozen=True)
class GenerateOptions(Options):
    """What is continued, and what is printed of it."""

    prompt: Annotated[str | None, Option("The same as PROMPT.", names=("-p",))] = None
    ignore_eos: Annotated[bool, Option("Go on past the model's own end of text.")] = False
    json: Annotated[bool, Option("Print one JSON object.")] = False
    quiet: Annotated[bool, Option("Print only the text, and what goes wrong.", names=("-q",))] = (
        False
    )


@dataclass(frozen=True)
class GenerateSampling(SamplingOptions):
    """As in a chat, with an end: a base model's text need not have one."""

    max_tokens: int | None = 256


@derived
def generate(
    *,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="Text to continue; - or nothing reads it from a pipe.",
            show_default=False,
        ),
    ] = None,
    options: GenerateOptions,
    model: ModelOption = None,
    sampling: GenerateSampling,
    load: LoadOptions,
    engine: EngineOptions,
) -> None:
    """Continue a text.

    The text goes to stdout as it is made, tokens per second to stderr. A chat model is given the
    bare text too, without its chat format: to ask it something use `ossia chat`.
    """
    prompt = _prompt(given_text(text, options.prompt))
    llm = open_llm(model, load, engine, options.quiet)
    if model is None and not options.quiet:
        note(_NO_BASE_MODEL)
    values: dict[str, Any] = asdict(sampling)
    with llm.stream_text(prompt, **values, ignore_eos=options.ignore_eos) as stream:
        if options.json:
            print(json.dumps(_record(llm, stream), ensure_ascii=False))
            return
        finished = _show(prompt, stream)
    if not options.quiet:
        note(_speed(finished))
        if llm.expert_reads is not None:
            note(llm.expert_reads.summary())


def _prompt(text: str | None) -> str:
    if text is None:
        if sys.stdin.isatty():
            raise OssiaError('no prompt: ossia generate "Once upon a time", or pipe one in')
        text = given_text("-", None)
    if not text:
        raise OssiaError("the prompt is empty")
    return text


def _show(prompt: str, stream: Stream) -> Finished:
    """The text as it is made; on a terminal after the dim prompt, and wrapped between words."""
    if columns(sys.stdout) is None:
        finished = _drain(stream, _print)
    else:
        words = WordWrap(
            lambda piece: _print(dim(piece, sys.stdout)), lambda: columns(sys.stdout) or 80
        )
        words.push(visible(prompt))
        words.finish()
        words.write = _print
        finished = _drain(stream, lambda piece: words.push(visible(piece)))
        words.finish()
    print(flush=True)
    return finished


def _print(piece: str) -> None:
    print(piece, end="", flush=True)


def _drain(stream: Stream, show: Callable[[str], object]) -> Finished:
    from ossia.api import Finished
    from ossia.text import TextDelta

    for event in stream:
        if isinstance(event, TextDelta):
            show(event.text)
        elif isinstance(event, Finished):
            return event
    raise AssertionError("a stream ends with Finished")


def _record(llm: LLM, stream: Stream) -> dict[str, Any]:
    pieces: list[str] = []
    finished = _drain(stream, pieces.append)
    prefill, decode = _rates(finished)
    record = {
        "text": "".join(pieces),
        "token_ids": [output.token for output in stream.outputs],
        "finish_reason": finished.reason,
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "prefill_tokens_per_second": prefill,
        "decode_tokens_per_second": decode,
    }
    if llm.expert_reads is not None:
        record["experts"] = asdict(llm.expert_reads)
    return record


def _speed(finished: Finished) -> str:
    prefill, decode = _rates(finished)
    parts = [f"prompt {finished.prompt_tokens} tokens"]
    if prefill is not None:
        parts[-1] += f" at {prefill:,.1f} tokens/s"
    parts.append(f"reply {finished.completion_tokens} tokens")
    if decode is not None:
        parts[-1] += f" at {decode:,.1f} tokens/s"
    return f"{', '.join(parts)} ({finished.reason})"


def _rates(finished: Finished) -> tuple[float | None, float | None]:
    """Tokens per second of the prompt and of the tokens after the first; None where there is
    nothing to divide.
    """
    prefill = (
        finished.prompt_tokens / finished.prefill_seconds if finished.prefill_seconds else None
    )
    decoded = finished.completion_tokens - 1
    decode = decoded / finished.decode_seconds if decoded > 0 and finished.decode_seconds else None
    return prefill, decode
