"""`ossia bench`: the limits of this machine's memory and processor, and a model's speed."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli.fields import derived
from ossia.cli.help import Command, Group
from ossia.cli.options import set_threads
from ossia.cli.text import table as text_table
from ossia.errors import OssiaError
from ossia.options import EngineOptions, KernelOptions, LoadOptions, Option, Options

if TYPE_CHECKING:
    from rich.table import Table

    from ossia.config import ModelConfig
    from ossia.measure.machine import Description
    from ossia.measure.model import Report
    from ossia.measure.speed import Spread

bench = typer.Typer(
    cls=Group,
    help="Measure this machine, or a model on it.",
    epilog="Example: ossia bench cpu gpt-oss-20b --prompt 512 --tokens 32",
    rich_markup_mode=None,
)


@bench.callback(invoke_without_command=True)
def _help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
TurnsOption = Annotated[
    int, typer.Option("--turns", min=1, metavar="N", help="Times to measure; the median counts.")
]


@dataclass(frozen=True)
class WorkOptions(Options):
    """What a model is measured at."""

    prompt: Annotated[str, Option("Lengths of the prompts, in tokens.", metavar="N,...")] = "512"
    tokens: Annotated[int, Option("Tokens that each sequence decodes in a turn.", minimum=1)] = 32
    batch: Annotated[str, Option("Numbers of sequences to decode together.", metavar="N,...")] = (
        "1,2,4,8"
    )
    turns: Annotated[int, Option("Times to measure; the median counts.", minimum=1)] = 5
    stages: Annotated[
        bool, Option("Then show where the time of each prompt and of a decoding step goes.")
    ] = False


@dataclass(frozen=True)
class GPUOptions(Options):
    """How a GPU is measured."""

    device: Annotated[str, Option("The card: cuda, cuda:1.", metavar="NAME")] = "cuda"
    seconds: Annotated[
        float, Option("Time for all; what does not fit is named.", above=0, metavar="N")
    ] = 150.0
    cpu: Annotated[
        bool, Option("Then measure gpt-oss-20b on the CPU as well, which takes minutes more.")
    ] = False
    folder: Annotated[
        Path | None,
        Option(
            "Where 14 GB of random weights are written for a while.",
            metavar="FOLDER",
            default="the system's for temporary files",
        ),
    ] = None
    rehearse: Annotated[
        bool, Option("Every row's code on the CPU, with tiny shapes: the figures mean nothing.")
    ] = False
    out: Annotated[
        Path | None,
        Option("Write the JSON there too.", metavar="FILE", names=("-o",), default="nowhere"),
    ] = None


@bench.command(epilog="Example: ossia bench machine --json", cls=Command)
@derived
def machine(
    *,
    kernels: KernelOptions,
    turns: TurnsOption = 5,
    as_json: JsonOption = False,
) -> None:
    """Measure read bandwidth and matrix products.

    These are a model's limits: decoding is memory-bound, prompts are compute-bound.
    """
    with _progress("measuring", 3) as advance:
        set_threads(kernels.threads)
        from ossia.measure import machine as measuring

        found = measuring.describe()
        advance()
        reads = measuring.read_rates(turns)
        advance()
        products = measuring.matrix_rates(kernels.backend, turns)
        advance()
    if as_json:
        print(json.dumps(measuring.record(found, reads, products)))
        return
    table = _table("", "median", "least", "most")
    for name, spread in reads.items():
        label = f"read by {name} thread{'s' if name == 'all' else ''}, GB/s"
        table.add_row(label, *_numbers(spread, 1e9, 1))
    for name, spread in products.items():
        table.add_row(f"{name}, TFLOP/s", *_numbers(spread, 1e12, 2))
    huge = f"{found.transparent_huge_pages or 'not offered'} (transparent), "
    huge += f"{found.reserved_huge_pages} reserved"
    memory = f"{found.memory_bytes / 1e9:.1f} GB"
    if found.available_bytes is not None:
        memory += f", {found.available_bytes / 1e9:.1f} GB free"
    _print_facts(
        {
            "processor": f"{found.processor}, {found.processors} threads of it",
            "instruction sets": " ".join(found.instruction_sets),
            "native kernels": found.kernels or "not built: torch alone",
            "threads": found.threads,
            "memory": memory,
            "huge pages": huge,
        }
    )
    _print(table)


@bench.command(
    epilog="Example: ossia bench cpu qwen3-0.6b --prompt 512,2048 --batch 1,8", cls=Command
)
@derived
def cpu(
    *,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Checkpoint folder, hub name, or a preset (qwen3-0.6b, gpt-oss-20b, ...), whose "
            "weights are random. [default: the model inside the package]",
            show_default=False,
        ),
    ] = None,
    work: WorkOptions,
    load: LoadOptions,
    engine: EngineOptions,
    as_json: JsonOption = False,
) -> None:
    """Measure how fast a model loads, processes prompts and decodes.

    Decoding is greedy, and at temperature 1 with top-p 0.95. Each turn also measures read
    bandwidth, which limits decoding: a token reads every weight that it uses once.
    """
    prompts, batches = _list("--prompt", work.prompt), _list("--batch", work.batch)
    name, source = _find(model)
    with _progress(name, work.turns * (len(prompts) + len(batches)) + 1) as advance:
        set_threads(load.threads)
        from ossia.measure.machine import describe
        from ossia.measure.model import measure_model
        from ossia.measure.speed import Workload

        machine = describe()
        workload = Workload(prompts, work.tokens, batches, work.turns)
        report = measure_model(source, workload, load, engine, advance, stages=work.stages)
    if as_json:
        print(json.dumps({"model": name, "machine": asdict(machine), **asdict(report)}))
        return
    _print_report(name, machine, report)


@bench.command(epilog="Example: ossia bench gpu --out gpu.json", cls=Command)
@derived
def gpu(*, options: GPUOptions, as_json: JsonOption = False) -> None:
    """Measure inference and training on a GPU, beside its limits and transformers.

    Weights are random, in the shapes of gpt-oss-20b, Qwen3-8B, Qwen3-0.6B and GPT-2: nothing is
    downloaded. Each part has a process of its own; what fails in one is a line of the report.
    """
    from ossia.measure.gpu import cases, parts, report, suite
    from ossia.system.files import check_output, json_bytes, write_output

    name, device = ("rehearsal", "cpu") if options.rehearse else ("full", options.device)
    chosen = cases.SUITES[name]
    if not options.rehearse:
        suite.check(device)
    if options.out is not None:
        check_output(options.out)  # not after minutes
    with _temporary(options.folder) as place:
        weights = place / chosen.stored.name
        command = suite.command(name, device, weights)
        with _progress("measuring", len(parts.parts(chosen)) + 1) as advance:
            found = suite.run(chosen, options.seconds, command, lambda _: advance())
        record = report.record(found, chosen)
        if options.cpu:
            record["cpu"] = _gpt_oss_on_cpu(weights, chosen.stored.config)
    if options.out is not None:
        write_output(options.out, json_bytes(record))
    if as_json:
        print(json.dumps(record))
        return
    _print_gpu(record, report.cells(found, chosen), report.remarks(found, chosen))


def _gpt_oss_on_cpu(weights: Path, config: ModelConfig) -> dict[str, Any]:
    """What `ossia bench cpu` measures, in brief."""
    from ossia.measure.machine import describe
    from ossia.measure.model import measure_model
    from ossia.measure.speed import Workload

    source = weights if weights.is_dir() else config
    report = measure_model(source, Workload([512], 16, (1, 8), 3))
    return {"machine": asdict(describe()), **asdict(report)}


def _print_gpu(record: dict[str, Any], lines: list[tuple[str, ...]], remarks: list[str]) -> None:
    from ossia.measure.gpu.report import HEAD

    limits = record["limits"]
    units = {
        "memory": ("memory_bytes", 1e9, "GB"),
        "free of it": ("free_bytes", 1e9, "GB"),
        "reads": ("read_bytes_per_second", 1e9, "GB/s"),
        "products": ("operations_per_second", 1e12, "TFLOP/s in bfloat16"),
        "copies to it": ("copy_bytes_per_second", 1e9, "GB/s"),
    }
    facts = {"card": limits["card"] or "unknown"}
    for label, (key, unit, name) in units.items():
        if limits[key] is not None:
            facts[label] = f"{limits[key] / unit:,.4g} {name}"
    if limits["failed"]:
        facts["not measured"] = "; ".join(f"{key}: {why}" for key, why in limits["failed"].items())
    facts["versions"] = ", ".join(f"{n} {version}" for n, version in limits["versions"].items())
    facts["measured in"] = f"{record['seconds']:.0f} s"
    _print_facts(facts)
    table = _table(*HEAD)
    for line in lines:
        table.add_row(*line)
    _print(table)
    for remark in remarks:
        print(remark)
    if (measured := record.get("cpu")) is not None:
        machine, speed = measured["machine"], measured["run"]["speed"]
        print(f"on the CPU, {machine['processor']}, {machine['threads']} threads:")
        for prefill in speed["prefill"]:
            rate = prefill["tokens_per_second"]["median"]
            print(f"  prompt of {prefill['tokens']}: {rate:,.1f} tokens/s")
        for decoding in speed["decoding"]:
            rate = decoding["tokens_per_second"]["median"]
            print(f"  decode, batch {decoding['batch']}: {rate:,.1f} tokens/s")


@contextmanager
def _temporary(folder: Path | None) -> Iterator[Path]:
    """A new folder in that one, removed at the end."""
    from ossia.system.files import writing

    with writing(folder or Path(tempfile.gettempdir())):
        found = tempfile.TemporaryDirectory(prefix="ossia-bench-", dir=folder)
    with found as name:
        yield Path(name)


def _print_report(name: str, machine: Description, report: Report) -> None:
    run, speed = report.run, report.run.speed
    formats = report.dtype
    formats += f", dense weights in {report.dense}" if report.dense else ""
    if report.activations:
        formats += f", prompts' activations in {report.activations}"
    formats += f", keys and values in {report.kv}" if report.kv else ""
    facts = {
        "model": f"{name}, {formats}, {report.checkpoint_bytes / 1e9:.2f} GB",
        "backend": f"{report.backend} ({machine.kernels}), {machine.threads} threads",
    }
    if not report.random_weights:
        facts["loaded in"] = f"{run.load_seconds:.2f} s"
        facts["first token after"] = f"{run.first_token_seconds:.2f} s"
    facts["memory"] = f"{run.anonymous_bytes / 1e9:.2f} GB at most, beside mapped files"
    _print_facts(facts)
    table = _table("", "median", "least", "most")
    for prefill in speed.prefill:
        label = f"prompt of {prefill.tokens:,}: first token, s"
        table.add_row(label, *_numbers(prefill.seconds, 1, 2))
        table.add_row("  tokens/s", *_numbers(prefill.tokens_per_second, 1, 1))
    for decoding in speed.decoding:
        together = f"{decoding.batch} together" if decoding.batch > 1 else "one sequence"
        table.add_row(f"{together}: tokens/s", *_numbers(decoding.tokens_per_second, 1, 1))
        if decoding.share is not None:
            table.add_row("  share of the limit", *_numbers(decoding.share, 1, 2))
        if (sampled := decoding.sampled) is not None:
            rates = _numbers(sampled.tokens_per_second, 1, 1)
            table.add_row("  at temperature 1, top-p 0.95", *rates)
            table.add_row("  sampler alone, ms", *_numbers(sampled.sampler_seconds, 1e-3, 2))
            table.add_row("  share of a step, %", *_numbers(sampled.sampler_share, 0.01, 1))
    table.add_row("memory read, GB/s", *_numbers(speed.read_bytes_per_second, 1e9, 1))
    table.add_row(
        "  so the limit is, tokens/s",
        *_numbers(speed.read_bytes_per_second, report.bytes_per_token, 1),
    )
    _print(table)
    for measured in report.stages or ():
        table = _table(f"{measured.name}, {measured.seconds * 1e3:,.1f} ms", "ms", "%", "busy, %")
        for stage in measured.stages:
            share, busy = stage.seconds / measured.seconds, stage.busy / stage.seconds
            figures = (stage.seconds * 1e3, share * 100, busy / machine.threads * 100)
            table.add_row(stage.name, *(f"{figure:,.1f}" for figure in figures))
        _print(table)


def _find(model: str | None) -> tuple[str, Path | ModelConfig]:
    """What to call the model, and its folder, or a preset's config."""
    from ossia.families import preset

    if model is not None and (config := preset(model)) is not None:
        return f"{model.lower()} with random weights", config
    from ossia import checkpoint

    folder = checkpoint.find(model)
    return folder.name, folder


def _list(option: str, text: str) -> list[int]:
    """Positive numbers between commas."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise OssiaError(f"{option} {text}: must be positive numbers with commas between them")
    return list(dict.fromkeys(map(int, parts)))


@contextmanager
def _progress(name: str, steps: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr where that is a terminal, gone when the work is done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=steps)
        yield lambda: progress.advance(task)


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=i > 0)
    return table


def _numbers(spread: Spread, unit: float, digits: int) -> list[str]:
    return [f"{value / unit:,.{digits}f}" for value in (spread.median, spread.least, spread.most)]


def _print_facts(facts: dict[str, Any]) -> None:
    print(text_table([(label, str(value)) for label, value in facts.items()], sys.stdout))


def _print(table: Table) -> None:
    from rich.console import Console

    Console(highlight=False).print(table)
