"""`ossia generate`: the continuation of a prompt, as it is made."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli.fields import derived
from ossia.cli.options import (
    MaxTokensOption,
    MinPOption,
    ModelOption,
    SeedOption,
    StopOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    note,
    open_llm,
)
from ossia.errors import OssiaError
from ossia.options import EngineOptions, LoadOptions

if TYPE_CHECKING:
    from ossia.api import Finished, Stream


@derived
def generate(
    *,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="Text to continue; - or nothing reads it from a pipe.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = None,
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    seed: SeedOption = None,
    stop: StopOption = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on past the model's own end of text.")
    ] = False,
    load: LoadOptions,
    engine: EngineOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Continue a text.

    The text goes to stdout as it is made, tokens per second to stderr. A chat model is given the
    bare text too, without its chat format: to ask it something use `ossia chat`.
    """
    text = _read_prompt(prompt)
    llm = open_llm(model, load, engine)
    with llm.stream_text(
        text,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=stop,
        ignore_eos=ignore_eos,
    ) as stream:
        if as_json:
            pieces: list[str] = []
            finished = _drain(stream, pieces.append)
            record = {
                "text": "".join(pieces),
                "token_ids": [output.token for output in stream.outputs],
                **_record(finished),
            }
            if llm.expert_reads is not None:
                record["experts"] = asdict(llm.expert_reads)
            print(json.dumps(record, ensure_ascii=False))
            return
        if sys.stdout.isatty():
            from ossia.cli.terminal import dim, visible

            print(dim(visible(text), sys.stdout), end="", flush=True)
            finished = _drain(stream, lambda piece: print(visible(piece), end="", flush=True))
        else:
            finished = _drain(stream, lambda piece: print(piece, end="", flush=True))
    print(flush=True)
    note(_speed(finished))
    if llm.expert_reads is not None:
        note(llm.expert_reads.summary())


def _read_prompt(prompt: str | None) -> str:
    if prompt is None and sys.stdin.isatty():
        raise OssiaError('no prompt: ossia generate "Once upon a time", or pipe one in')
    if prompt is None or prompt == "-":
        prompt = sys.stdin.read().removesuffix("\n")  # the one that echo and files end with
    if not prompt:
        raise OssiaError("the prompt is empty")
    return prompt


def _drain(stream: Stream, show: Any) -> Finished:
    from ossia.api import Finished
    from ossia.text import TextDelta

    for event in stream:
        if isinstance(event, TextDelta):
            show(event.text)
        elif isinstance(event, Finished):
            return event
    raise AssertionError("a stream ends with Finished")


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


def _record(finished: Finished) -> dict[str, Any]:
    prefill, decode = _rates(finished)
    return {
        "finish_reason": finished.reason,
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "prefill_tokens_per_second": prefill,
        "decode_tokens_per_second": decode,
    }


def _speed(finished: Finished) -> str:
    prefill, decode = _rates(finished)
    parts = [f"prompt {finished.prompt_tokens} tokens"]
    if prefill is not None:
        parts[-1] += f" at {prefill:,.1f} tokens/s"
    parts.append(f"reply {finished.completion_tokens} tokens")
    if decode is not None:
        parts[-1] += f" at {decode:,.1f} tokens/s"
    return f"{', '.join(parts)} ({finished.reason})"
