"""What a run may set: the fields of one frozen value, and the command's options with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ossia.errors import OssiaError
from ossia.options import Option, Options

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")


@dataclass(frozen=True)
class EvalOptions(Options):
    """Which models answer which questions, how often, and what it may cost."""

    out: Annotated[
        Path | None,
        Option(
            "A new folder, or that of a run, which goes on where it stopped.",
            metavar="FOLDER",
            names=("-o",),
            default="eval- and the time",
        ),
    ] = None
    model: Annotated[
        tuple[str, ...],
        Option(
            "Checkpoint folder, hub name, or an endpoint such as http://localhost:8000/v1#NAME; "
            "may be repeated.",
            metavar="MODEL",
            names=("-m",),
            default="the model inside the package",
        ),
    ] = ()
    task: Annotated[
        tuple[str, ...],
        Option(
            "A .jsonl file of questions, or a known data set, as gsm8k or gsm8k:FILE; may be "
            "repeated.",
            metavar="TASK",
            names=("-t",),
            default="the held-out questions of the model inside the package",
        ),
    ] = ()
    effort: Annotated[
        str | None,
        Option(
            f"Reasoning efforts: {', '.join(EFFORTS)}, as far as a model has them.",
            metavar="EFFORT,...",
            default="the model's own",
        ),
    ] = None
    repeat: Annotated[int, Option("Times that each question is asked.", minimum=1)] = 1
    limit: Annotated[
        int | None, Option("Questions of each task, its first.", minimum=1, default="all")
    ] = None
    concurrency: Annotated[
        int,
        Option(
            "Questions that are asked at a time.",
            minimum=1,
            maximum=1024,
            default="16; 1 for the model inside the package and its questions",
        ),
    ] = 16
    judge: Annotated[
        str | None,
        Option(
            "The model that grades questions whose scorer is judge.",
            metavar="MODEL",
            default="none",
        ),
    ] = None
    prices: Annotated[
        Path | None,
        Option(
            "A JSON file of US dollars per million tokens, by model.",
            metavar="FILE",
            default="none",
        ),
    ] = None
    max_cost: Annotated[
        float | None,
        Option(
            "US dollars that the run never exceeds; needs --prices and --max-tokens.",
            above=0,
            default="no limit",
        ),
    ] = None
    timeout: Annotated[
        float, Option("Seconds until a request to an endpoint counts as lost.", above=0)
    ] = 1800.0
    retries: Annotated[
        int, Option("Times that a request is made again after an error.", minimum=0, maximum=100)
    ] = 8
    training_text: Annotated[
        str | None,
        Option(
            "A text or folder that the models were trained on: questions that occur in it are "
            "marked in the report.",
            metavar="PATH",
            default="none",
        ),
    ] = None
    json: Annotated[bool, Option("Print the results as one JSON object.")] = False

    @property
    def efforts(self) -> tuple[str, ...]:
        """The efforts, '' for a model's own. Raises OssiaError for one that no model has."""
        if self.effort is None:
            return ("",)
        found = tuple(dict.fromkeys(part.strip().lower() for part in self.effort.split(",")))
        for effort in found:
            if effort not in EFFORTS:
                raise OssiaError(f"--effort {effort}: the efforts are {', '.join(EFFORTS)}")
        return found
