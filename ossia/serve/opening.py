"""From options to a service: the model's name, its tools, its limits and its application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossia.errors import OssiaError
from ossia.serve.hosted import Hosted
from ossia.serve.options import ServeOptions
from ossia.serve.service import Service
from ossia.system.memory import parse_size
from ossia.tools.chosen import ChosenTools
from ossia.tools.mcp import Address, McpServers

if TYPE_CHECKING:
    from ossia.api import LLM


_TOLD = ("backend", "device", "kv_bytes", "max_batch", "max_length")


@contextmanager
def tools(options: ServeOptions) -> Iterator[Callable[[LLM], Hosted]]:
    """Makes the tools that the server runs for a model. What cannot be had is refused before."""
    chosen = ChosenTools(options.tool)
    addresses = [Address.of(text) for text in options.mcp]
    with McpServers(addresses) if addresses else nullcontext() as mcp:

        def make(llm: LLM) -> Hosted:
            tools = chosen.toolsets(lambda text: len(llm.tokenizer.encode(text)))
            tools += mcp.toolsets if mcp else []
            if tools and llm.chat_format.name == "plain":
                raise OssiaError("this model has no chat format, so it cannot call tools")
            return Hosted(tools, options.max_tool_calls)

        yield make


def service(
    llm: LLM,
    path: str | None,
    options: ServeOptions,
    hosted: Hosted,
    max_per_key: int | None = None,
) -> Service:
    """A service over a model. path: as the user named it. max_per_key: as `Service` has it."""
    return Service(
        llm,
        options.served_model_name or _name(path, llm.about.folder if llm.about else None),
        hosted=hosted,
        max_prompt=options.max_prompt,
        timeout=options.timeout,
        max_per_key=max_per_key,
    )


def bounds(options: ServeOptions) -> dict[str, Any]:
    """What bounds the responses that are kept."""
    size, days = parse_size(options.responses_size), options.responses_days
    return {"most_bytes": size, "seconds": days * 86400}


def about(service: Service) -> dict[str, Any]:
    """What runs, in words: the model's name, what it runs on if it was loaded, and its tools."""
    told: dict[str, Any] = {"model": service.name}
    if (loaded := service.llm.about) is not None:
        told |= {name: getattr(loaded, name) for name in _TOLD}
    if tools := [tool.name for tool in service.hosted.tools]:
        told["tools"] = tools
    return told


def _name(path: str | None, folder: Path | None) -> str:
    """A hub name as it is; of a folder, its last part."""
    if folder is None or (path is not None and not Path(path).exists()):
        return path or "model"
    return folder.resolve().name
