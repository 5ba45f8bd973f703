"""The server's options, which can be read without the packages that the server needs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from ossia.options import Option, Options
from ossia.system.memory import parse_size


class Routing(StrEnum):
    prefix = "prefix"
    turns = "turns"


@dataclass(frozen=True)
class ServeOptions(Options):
    """Where the server listens, and what it takes. max_body and responses_size are sizes such as
    "16MiB".
    """

    host: Annotated[
        str, Option("Address to listen on; 0.0.0.0 is every network.", metavar="ADDRESS")
    ] = "127.0.0.1"
    port: Annotated[
        int, Option("Port to listen on; 0 takes a free one.", minimum=0, maximum=65535)
    ] = 8000
    served_model_name: Annotated[
        str | None,
        Option("The model's name in requests and answers.", metavar="NAME", default="its own"),
    ] = None
    max_body: Annotated[
        str, Option("Largest body of a request; a larger one is refused.", metavar="SIZE")
    ] = "16MiB"
    max_prompt: Annotated[
        int | None,
        Option("Most tokens of a prompt.", minimum=1, default="what the model's context holds"),
    ] = None
    max_per_key: Annotated[
        int | None,
        Option("Most requests of one key that run together.", minimum=1, default="no limit"),
    ] = None
    timeout: Annotated[
        float | None,
        Option(
            "Seconds that a request may take; what there is by then is its answer.",
            minimum=0.001,
            default="no limit",
        ),
    ] = None
    drain_seconds: Annotated[
        float,
        Option("After SIGTERM, how long running answers may take to end.", minimum=0),
    ] = 30.0
    responses: Annotated[
        Path | None,
        Option(
            "Keep Responses in this SQLite file, over restarts.",
            metavar="FILE",
            default="in memory",
        ),
    ] = None
    responses_size: Annotated[
        str, Option("Most bytes of responses that are kept; the oldest go.", metavar="SIZE")
    ] = "1GiB"
    responses_days: Annotated[
        float, Option("How long responses are kept.", minimum=0.001, metavar="DAYS")
    ] = 30.0
    tool: Annotated[
        tuple[str, ...],
        Option(
            "A tool that the server runs when the model calls it: python, browser=FOLDER, "
            "calculate or documentation; may be repeated.",
            metavar="TOOL",
            default="none",
        ),
    ] = ()
    mcp: Annotated[
        tuple[str, ...],
        Option(
            "An MCP server whose tools the server calls for the model: a URL, or a command and "
            "its arguments in one string; LABEL= before it names it. May be repeated.",
            metavar="SERVER",
            default="none",
        ),
    ] = ()
    max_tool_calls: Annotated[int, Option("Most calls of these tools in one reply.", minimum=1)] = (
        32
    )
    replicas: Annotated[
        int | None,
        Option(
            "Processes of the model behind this endpoint, on a Ray cluster: one for each GPU, or "
            "each with a share of the processors.",
            minimum=1,
            maximum=1024,
            default="the model runs in this process",
        ),
    ] = None
    cluster: Annotated[
        str | None,
        Option(
            "The Ray cluster for --replicas, as Ray names it; this machine must be part of it. "
            "auto is the one that runs here.",
            metavar="ADDRESS",
            default="RAY_ADDRESS, or else a Ray for this command alone",
        ),
    ] = None
    routing: Annotated[
        Routing,
        Option(
            "Which replica gets a request: prefix, the one that has read its beginning unless "
            "others are less busy; turns, each in turn."
        ),
    ] = Routing.prefix
    json: Annotated[bool, Option("Log JSON lines, and print one when it listens.")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_size(self.max_body)
        parse_size(self.responses_size)

    @property
    def max_body_bytes(self) -> int:
        return parse_size(self.max_body)
