"""`ossia xray`: what happens inside a model while it reads a text, as a page, JSON or arrays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.cli.fields import derived
from ossia.cli.options import ModelOption, given_text, loading
from ossia.cli.text import say
from ossia.cli.xray_sides import Looker, Side, Source, read_messages, read_text
from ossia.errors import OssiaError
from ossia.insight.xray_options import XrayOptions
from ossia.options import LoadOptions, Option, Options
from ossia.system.files import check_output, write_output, writing

if TYPE_CHECKING:
    from ossia.insight.xray import Xray
    from ossia.insight.xray.subject import Subject


@dataclass(frozen=True)
class TextOptions(Options):
    """What is read, and where what is found goes."""

    file: Annotated[Path | None, Option("Read the text from this file.", names=("-f",))] = None
    messages: Annotated[
        Path | None,
        Option(
            "Read a conversation, as JSON of Chat Completions: its messages, or an object with "
            "messages and tools. An assistant's message at its end is part of the text.",
        ),
    ] = None
    reasoning_effort: Annotated[
        str | None,
        Option(
            "How long gpt-oss thinks, as its prompt says it: low, medium or high.",
            metavar="LEVEL",
            names=("--effort",),
        ),
    ] = None
    reply: Annotated[
        int,
        Option(
            "First have the model continue the text by up to N tokens, each the likeliest.",
            minimum=0,
        ),
    ] = 0
    compare: Annotated[
        tuple[str, ...],
        Option(
            "Compare with another model (folder or hub name), or with a change: sinks=off, "
            "windows=off, dense=int8, effort=low, text=..., file=... Several go together.",
            metavar="MODEL|CHANGE",
            default="none",
        ),
    ] = ()
    out: Annotated[Path, Option("The page to write.", names=("-o",))] = Path("xray.html")
    npz: Annotated[Path | None, Option("Also write all arrays to this .npz file.")] = None
    json: Annotated[bool, Option("Print one JSON object, and write no page.")] = False


@derived
def xray(
    *,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT", help="The text to read; - reads it from a pipe.", show_default=False
        ),
    ] = None,
    options: TextOptions,
    model: ModelOption = None,
    look: XrayOptions,
    load: LoadOptions,
) -> None:
    """Look inside a model while it reads a text.

    Writes one HTML page that needs no server: how likely each token was, what the attention of each
    head looks at, which experts each token uses, what each layer would have predicted, and what
    lower precision would change.
    """
    first = Side(model, load, _source(text, options))
    sides = [first, first.changed(options.compare)] if options.compare else [first]
    if not options.json:
        check_output(options.out)
    if options.npz is not None:
        check_output(options.npz)
    with _shown(model) as progress:
        looker = Looker(progress)
        seen = [looker.look(side, look) for side in sides]
        if options.npz is not None:
            _save(seen, options.npz)
        if options.json:
            shown = None
        else:
            progress("writing the page")
            shown = _page(seen)
    if shown is None:
        print(json.dumps(_record(seen), ensure_ascii=False))
        return
    write_output(options.out, shown.encode())
    for _, subject in seen:
        say(f"{subject.name}: {_length(subject)}")
    say(f"The x-ray is in {options.out} ({len(shown) / 1e6:.1f} MB); open it in a browser")


def _length(subject: Subject) -> str:
    if len(subject.pieces) == 1:  # which nothing comes before
        return "1 token"
    return f"{len(subject.pieces):,} tokens, {subject.trace.loss:.3f} nats each"


def _source(text: str | None, options: TextOptions) -> Source:
    """Raises OssiaError unless there is one text, and something in it."""
    given = {"TEXT": text, "--file": options.file, "--messages": options.messages}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        found = " and ".join(names) or "no text"
        raise OssiaError(f"{found}: give one of TEXT, --file and --messages")
    if options.messages is not None:
        from ossia.text.chat import read_effort  # imports the tokenizer's library

        effort = read_effort(options.reasoning_effort, "--reasoning-effort")
        chat = read_messages(options.messages, effort)
        return Source(chat=chat, reply=options.reply)
    if options.reasoning_effort is not None:
        raise OssiaError("--reasoning-effort: only a chat has one; give --messages")
    plain = given_text(text, None) if options.file is None else read_text(options.file)
    if not plain:
        raise OssiaError("the text is empty: there is nothing to x-ray")
    return Source(plain, reply=options.reply)


@contextmanager
def _shown(model: str | None) -> Iterator[Callable[[str], None]]:
    """Yields what shows the work in progress, which a terminal has beside a spinner."""
    with loading(model) as status:
        yield (lambda _: None) if status is None else status.update


def _page(seen: Sequence[tuple[Xray, Subject]]) -> str:
    from ossia.insight.xray.page import render

    between = seen[0][0].against(seen[1][0]) if len(seen) > 1 else None
    return render([subject for _, subject in seen], between)


def _record(seen: Sequence[tuple[Xray, Subject]]) -> dict[str, object]:
    from ossia.insight.xray.subject import difference_record, record

    if len(seen) == 1:
        return record(seen[0][1])
    between = seen[0][0].against(seen[1][0])
    return {
        "xrays": [record(subject) for _, subject in seen],
        "difference": between and difference_record(between),
    }


def _save(seen: Sequence[tuple[Xray, Subject]], path: Path) -> None:
    """The arrays of each; those of a comparison in two files."""
    paths = [path] if len(seen) == 1 else [path.with_stem(f"{path.stem}-{s}") for s in "ab"]
    for (found, _), place in zip(seen, paths, strict=True):
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            found.trace.save(place)
