"""`ossia compare`: architectures side by side, in numbers and pictures, from their configs."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.cli.fields import derived
from ossia.cli.options import IgnoreUnknownOption, complete_model
from ossia.cli.text import say
from ossia.errors import OssiaError
from ossia.options import Option, Options
from ossia.system.files import check_output, read_json, write_output
from ossia.system.memory import parse_size

if TYPE_CHECKING:
    from ossia.insight.compare import Comparison, Setting
    from ossia.insight.facts import Model
    from ossia.insight.hardware import Hardware
    from ossia.insight.lineage import Finding
    from ossia.insight.measured import Point

_MOST = 6  # models in a page: as many as its lines have styles
_CONTEXT = 4096  # tokens, where every model supports as many
_HERE = "here"


@dataclass(frozen=True)
class AtOptions(Options):
    """What the models are compared at."""

    length: Annotated[
        int | None,
        Option("Tokens of each text.", default="4096, or the shortest context", minimum=1),
    ] = None
    batch: Annotated[str, Option("Numbers of sequences decoded together.", metavar="N,...")] = (
        "1,8,64,256"
    )
    memory: Annotated[str, Option("Memory that the longest text is to fit in.", metavar="SIZE")] = (
        "16GB"
    )
    hardware: Annotated[
        tuple[str, ...],
        Option(
            "A machine to bound speeds on: h100, h200, b200, rtx-4090, rtx-5090, m4-max, m3-ultra; "
            "cpu:CORES:GB/S; a file of ossia bench machine --json; or here, which measures. May be "
            "repeated.",
            metavar="NAME",
            default="h100, rtx-5090, m4-max",
        ),
    ] = ()
    ladder: Annotated[
        Path | None,
        Option("The folder of ossia ablate, for the effect of each choice.", metavar="FOLDER"),
    ] = None
    measured: Annotated[
        Path | None,
        Option("A file of ossia bench cpu --json, or a folder of them.", metavar="PATH"),
    ] = None


@dataclass(frozen=True)
class OutOptions(Options):
    """What is written, beside the table."""

    html: Annotated[Path | None, Option("Write one page, with pictures.", metavar="FILE")] = None
    svg: Annotated[Path | None, Option("Write each picture as a file.", metavar="FOLDER")] = None
    article: Annotated[
        Path | None,
        Option(
            "Write the pages GPT-2 XL vs gpt-oss-20b vs Qwen3, and take no models.",
            metavar="FOLDER",
        ),
    ] = None


@derived
def compare(
    *,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Presets (gpt2-xl, gpt-oss-20b, ...), checkpoint folders or hub names, of which "
            "only config.json is read.",
            autocompletion=complete_model,
        ),
    ] = None,
    at: AtOptions,
    out: OutOptions,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ignore_unknown_keys: IgnoreUnknownOption = False,
) -> None:
    """Compare architectures in numbers and pictures.

    Parameters, costs and bounds on speed are counted from the configs; no weights are read or
    downloaded.
    """
    inputs = _Inputs.read(at)
    if out.article is not None:
        if models or out.html or out.svg or markdown or as_json:
            raise OssiaError(
                "--article writes pages of its own models: give --article FOLDER alone"
            )
        _write_article(out.article, inputs)
        return
    if not models:
        raise OssiaError("name one or more models, such as ossia compare gpt2-xl gpt-oss-20b")
    if len(models) > _MOST:
        raise OssiaError(f"at most {_MOST} models are compared at a time, not {len(models)}")
    if out.html is not None:
        check_output(out.html)
    found = [_model(name, ignore_unknown_keys) for name in dict.fromkeys(models)]
    _write(found, inputs, out, "markdown" if markdown else "json" if as_json else "table")


def _write(models: Sequence[Model], inputs: _Inputs, out: OutOptions, form: str) -> None:
    from ossia.insight import compare_page
    from ossia.insight.compare import compare
    from ossia.insight.lineage import findings

    comparison = compare(models, inputs.setting(models))
    lineage, points = findings(models, inputs.effects), inputs.points(models)
    if out.html is not None:
        page = compare_page.render(comparison, lineage, points, _command())
        write_output(out.html, page.encode())
    if out.svg is not None:
        _save(out.svg, compare_page.files(comparison))
    if form == "json":
        print(json.dumps(_record(comparison, lineage, points)))
    elif form == "markdown":
        from ossia.insight.compare_text import markdown

        print(markdown(comparison, lineage, points), end="")
    else:
        _print(comparison, points)


@dataclass(frozen=True)
class _Inputs:
    """What the options name, read and checked."""

    options: AtOptions
    batches: tuple[int, ...]
    memory: int
    hardware: tuple[Hardware, ...]
    effects: Mapping[str, str]
    records: tuple[tuple[Path, Mapping], ...]  # of `ossia bench cpu`

    @classmethod
    def read(cls, options: AtOptions) -> _Inputs:
        from ossia.ladder.effects import effects

        names = options.hardware or ("h100", "rtx-5090", "m4-max")
        return cls(
            options,
            _batches(options.batch),
            parse_size(options.memory),
            tuple(map(_hardware, names)),
            {} if options.ladder is None else effects(options.ladder),
            tuple(_records(options.measured)),
        )

    def setting(self, models: Sequence[Model]) -> Setting:
        """Raises OssiaError for texts that exceed a model's context."""
        from ossia.insight.compare import Setting

        shortest = min(models, key=lambda model: model.config.context_length)
        most = shortest.config.context_length
        context = min(_CONTEXT, most) if self.options.length is None else self.options.length
        if context > most:
            raise OssiaError(
                f"--length {context}: {shortest.name} supports at most {most:,} tokens"
            )
        return Setting(context, self.batches, self.memory, self.hardware)

    def points(self, models: Sequence[Model]) -> list[Point]:
        from ossia.insight.measured import points

        return [p for file, record in self.records for p in points(models, record, str(file))]


def _batches(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 1 << 20 for part in parts):
        raise OssiaError(f"--batch {text}: must be numbers from 1 to 1048576, with commas between")
    return tuple(dict.fromkeys(map(int, parts)))


def _hardware(name: str) -> Hardware:
    from ossia.insight.hardware import measured, named

    if name == _HERE:
        return measured(_machine(), "this machine")
    if Path(name).is_file():
        return measured(read_json(Path(name)), name)
    return named(name)


def _machine() -> dict:
    """This machine's record, as of `ossia bench machine --json`."""
    from ossia.measure import machine

    return machine.record(machine.describe(), machine.read_rates(), machine.matrix_rates())


def _records(place: Path | None) -> list[tuple[Path, Mapping]]:
    if place is None:
        return []
    files = sorted(place.glob("*.json")) if place.is_dir() else [place]
    if not files:
        raise OssiaError(f"--measured {place} holds no *.json")
    return [(file, read_json(file)) for file in files]


def _model(name: str, ignore_unknown_keys: bool) -> Model:
    from ossia.families import preset
    from ossia.insight.facts import Model

    if (config := preset(name)) is not None:
        return Model(name.lower(), config)
    from ossia import checkpoint

    folder = checkpoint.find(name, config_only=True)
    config = checkpoint.read_config(folder, ignore_unknown_keys)
    return Model(name.rstrip("/").rpartition("/")[2] or name, config)


def _write_article(folder: Path, inputs: _Inputs) -> None:
    from ossia.insight import article

    pages = article.files(inputs.setting, inputs.effects, inputs.points, _command())
    _save(folder, pages)
    say(f"{sum(name.endswith('.html') for name in pages)} pages are in {folder / 'index.html'}")


def _command() -> str:
    """The command as it was typed."""
    return shlex.join(["ossia", *sys.argv[1:]])


def _save(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        write_output(folder / name, text.encode())


def _record(
    comparison: Comparison, lineage: Sequence[Finding], points: Sequence[Point]
) -> dict[str, object]:
    return {
        **comparison.record(),
        "lineage": [asdict(finding) for finding in lineage],
        "measured": [asdict(point) for point in points],
    }


def _print(comparison: Comparison, points: Sequence[Point]) -> None:
    """A table for the terminal; what all models share is dim."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=len(comparison.models) <= 3)  # more leave no room
    for model in comparison.models:
        table.add_column(model.name, justify="right", overflow="fold")
    for i, group in enumerate(comparison.groups):
        if i:
            table.add_section()
        table.add_row(f"[bold]{group.title}[/bold]")
        for row in group.rows:
            alike = len(comparison.models) > 1 and not row.differs
            table.add_row(f"  {row.label}", *row.cells, style="dim" if alike else None)
    Console(highlight=False).print(table)
    for point in points:
        say(
            f"{point.model}, {point.batch} together: {point.tokens_per_second:.1f} tokens/s "
            f"measured, {point.bound:.1f} at most ({100 * point.share:.0f} %), on {point.machine}"
        )
