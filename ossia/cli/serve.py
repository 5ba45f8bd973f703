"""`ossia serve`: a model behind OpenAI's HTTP API."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli.fields import derived
from ossia.cli.options import ModelOption, open_llm
from ossia.errors import OssiaError
from ossia.options import EngineOptions, LoadOptions
from ossia.serve.options import ServeOptions
from ossia.system.memory import parse_size
from ossia.tools.chosen import ChosenTools
from ossia.tools.mcp import Address, McpServers

if TYPE_CHECKING:
    from ossia.api import LLM
    from ossia.serve.hosted import Hosted
    from ossia.serve.service import Service


@derived
def serve(
    *,
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="PATH_OR_HUB_NAME",
            help="Checkpoint folder, or a name on the Hugging Face hub. "
            "[default: the model inside the package]",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = None,
    options: ServeOptions,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="OSSIA_API_KEYS",
            help="A key that requests must bring; may be repeated. The environment variable, with "
            "spaces between keys, keeps them out of the list of processes.",
            show_envvar=True,
        ),
    ] = None,
    load: LoadOptions,
    engine: EngineOptions,
) -> None:
    """Serve a model through OpenAI's HTTP API.

    It listens on this machine alone unless --host says otherwise. There are Responses, Chat
    Completions, Completions, models, tokenize and detokenize, and figures for Prometheus under
    /metrics. SIGTERM or Ctrl-C lets running answers end. What is asked and answered is not logged.
    """
    if None not in (path, model):
        raise OssiaError("the model was named twice, as an argument and with --model")
    _check_keys(api_key or [], options)
    path = path or model
    try:
        from ossia.serve.app import application
        from ossia.serve.responses.store import ResponseStore
        from ossia.serve.server import listen, log_to_stderr
        from ossia.serve.server import serve as run
        from ossia.serve.service import Service
    except ImportError as error:
        raise OssiaError(
            f"the server's packages are not installed ({error}): pip install 'ossia[serve]'"
        ) from error
    with listen(options) as server, _tools(options) as tools, open_llm(path, load, engine) as llm:
        name = options.served_model_name or _name(path, llm.about.folder if llm.about else None)
        service = Service(llm, name, hosted=tools(llm), **_limits(options))
        app = application(
            service,
            keys=api_key or (),
            max_body=options.max_body_bytes,
            store=ResponseStore(options.responses, **_bounds(options)),
        )
        log_to_stderr(options.json)
        _announce(service, server, bool(api_key), options.json)
        run(app, server, options.drain_seconds, service.tasks)


@contextmanager
def _tools(options: ServeOptions) -> Iterator[Callable[[LLM], Hosted]]:
    """Makes the tools that the server runs for a model. What cannot be had is refused before."""
    from ossia.serve.hosted import Hosted

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


def _check_keys(keys: list[str], options: ServeOptions) -> None:
    """Raise OssiaError for keys that cannot be meant."""
    if not all(keys):
        raise OssiaError("--api-key: a key is empty")
    if options.max_per_key is not None and not keys:
        raise OssiaError("--max-per-key needs --api-key: without keys all requests are one's own")


def _limits(options: ServeOptions) -> dict[str, Any]:
    """What bounds a request."""
    return {name: getattr(options, name) for name in ("max_prompt", "timeout", "max_per_key")}


def _bounds(options: ServeOptions) -> dict[str, Any]:
    """What bounds the responses that are kept."""
    size, days = parse_size(options.responses_size), options.responses_days
    return {"most_bytes": size, "seconds": days * 86400}


def _name(path: str | None, folder: Path | None) -> str:
    """A hub name as it is; of a folder, its last part."""
    if folder is None or (path is not None and not Path(path).exists()):
        return path or "model"
    return folder.resolve().name


def _announce(service: Service, server: socket.socket, keys: bool, as_json: bool) -> None:
    """Say where it listens, what runs there, and how to try it."""
    from ossia.serve.server import is_loopback, url
    from ossia.system.memory import format_size

    about, base = service.llm.about, url(server)
    tools = [tool.name for tool in service.hosted.tools]
    if as_json:
        record: dict[str, Any] = {"url": f"{base}/v1", "page": f"{base}/", "model": service.name}
        if about is not None:
            record |= {"backend": about.backend, "device": about.device}
            record |= {"kv_bytes": about.kv_bytes, "max_batch": about.max_batch}
        if tools:
            record["tools"] = tools
        print(json.dumps(record), flush=True)
        return
    print(f"{service.name} on {base}/v1; chat with it at {base}/")
    if about is not None:
        print(
            f"backend {about.backend} on {about.device}; {format_size(about.kv_bytes)} for keys "
            f"and values; up to {about.max_batch} requests together, {about.max_length} tokens each"
        )
    if tools:
        print(f"tools that run here when the model calls them: {', '.join(tools)}")
    if not is_loopback(server):
        note = "other machines can reach it" + ("" if keys else ", and no --api-key keeps them out")
        print(f"warning: {note}", file=sys.stderr)
    body = {"model": service.name, "messages": [{"role": "user", "content": "What is 2 + 2?"}]}
    key = ' -H "Authorization: Bearer $OSSIA_API_KEYS"' if keys else ""
    print(
        f"curl {base}/v1/chat/completions -H 'Content-Type: application/json'{key} "
        f"-d '{json.dumps(body)}'",
        flush=True,
    )
