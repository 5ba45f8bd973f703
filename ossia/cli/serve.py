"""`ossia serve`: a model behind OpenAI's HTTP API."""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli.fields import derived
from ossia.cli.options import ModelOption, open_llm
from ossia.errors import OssiaError
from ossia.options import EngineOptions, LoadOptions
from ossia.serve.options import Routing, ServeOptions

if TYPE_CHECKING:
    from ossia.serve.entrance import Rules


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
            help="A key that requests must carry; may be repeated. Keys given by the environment "
            "variable, with spaces between them, stay out of the list of processes.",
            show_envvar=True,
        ),
    ] = None,
    load: LoadOptions,
    engine: EngineOptions,
) -> None:
    """Serve a model through OpenAI's HTTP API.

    It listens on this machine only, unless --host says otherwise. The endpoints are Responses, Chat
    Completions, Completions, Anthropic's Messages, models, tokenize and detokenize, and metrics for
    Prometheus. On SIGTERM or Ctrl-C it finishes the answers that are running. Prompts and answers
    are not logged.
    """
    if None not in (path, model):
        raise OssiaError("the model was named twice, as an argument and with --model")
    _check(api_key or [], options)
    _check_packages()
    run = _serve_one if options.replicas is None else _serve_replicas
    run(path or model, options, api_key or [], load, engine)


def _check_packages() -> None:
    """Raise OssiaError if what the server needs is not installed."""
    try:
        import ossia.serve.app
        import ossia.serve.server  # noqa: F401
    except ImportError as error:
        if (error.name or "").startswith("ossia."):  # a fault of ours, of which more is to be seen
            raise
        raise OssiaError(
            f"the server's packages are not installed ({error}): pip install 'ossia[serve]'"
        ) from error


def _serve_one(
    path: str | None,
    options: ServeOptions,
    keys: list[str],
    load: LoadOptions,
    engine: EngineOptions,
) -> None:
    """Serve the model in this process."""
    from ossia.serve import opening
    from ossia.serve.app import application
    from ossia.serve.responses.store import ResponseStore
    from ossia.serve.server import listen, log_to_stderr
    from ossia.serve.server import serve as run

    with (
        listen(options) as server,
        opening.tools(options) as tools,
        open_llm(path, load, engine) as llm,
    ):
        service = opening.service(llm, path, options, tools(llm), options.max_per_key)
        app = application(
            service,
            _rules(options, keys, server),
            store=ResponseStore(options.responses, **opening.bounds(options)),
        )
        log_to_stderr(options.json)
        _announce(opening.about(service), server, bool(keys), options.json)
        run(app, server, options.drain_seconds, service.tasks, lambda: llm.stats().fault)


def _serve_replicas(
    path: str | None,
    options: ServeOptions,
    keys: list[str],
    load: LoadOptions,
    engine: EngineOptions,
) -> None:
    """Serve replicas of the model on a Ray cluster."""
    from ossia.serve.entrance import entrance
    from ossia.serve.replicas import machines
    from ossia.serve.replicas.balance import Balance
    from ossia.serve.replicas.front import WAIT_SECONDS, Front
    from ossia.serve.server import listen, log_to_stderr
    from ossia.serve.server import serve as run

    replicas = options.replicas or 1
    machines.check(options, load)
    try:
        from ossia.serve.replicas.cluster import connected, deployed
        from ossia.serve.replicas.deployment import Recipe
    except ImportError as error:
        raise OssiaError(
            f"--replicas: Ray is not installed ({error}): pip install 'ossia[serve,ray]'"
        ) from error
    address = options.cluster or os.environ.get("RAY_ADDRESS")
    with listen(options) as server, connected(address) as there:
        share = machines.share(there, replicas, load)
        recipe = Recipe(path, options, load, engine, share, bool(keys))
        with deployed(recipe, replicas) as cluster:
            front = Front(
                cluster.replicas,
                cluster.records,
                max_per_key=options.max_per_key,
                most_waiting=engine.max_queue,
                wait_seconds=options.timeout or WAIT_SECONDS,
                balance=Balance(aware=options.routing == Routing.prefix),
            )
            app = entrance(front, _rules(options, keys, server), front.figures)
            log_to_stderr(options.json)
            _announce(cluster.about | {"replicas": replicas}, server, bool(keys), options.json)
            run(app, server, options.drain_seconds, front.tasks)


def _rules(options: ServeOptions, keys: list[str], server: socket.socket) -> Rules:
    """What requests to a server must keep to."""
    from ossia.serve.entrance import Rules
    from ossia.serve.origins import Pages
    from ossia.serve.server import is_loopback

    pages = Pages(options.allow_origin, is_loopback(server))
    return Rules(keys, options.max_body_bytes, options.timeout, pages)


def _check(keys: list[str], options: ServeOptions) -> None:
    """Raise OssiaError for options that cannot be meant."""
    if not all(keys):
        raise OssiaError("--api-key: a key is empty")
    if options.max_per_key is not None and not keys:
        raise OssiaError("--max-per-key needs --api-key: without keys all requests are one's own")
    if options.cluster is not None and options.replicas is None:
        raise OssiaError("--cluster is for --replicas, which says how many")


def _announce(about: dict[str, Any], server: socket.socket, keys: bool, as_json: bool) -> None:
    """Say where it listens, what runs there, and how to try it."""
    from ossia.serve.server import is_loopback, url
    from ossia.system.memory import format_size

    base, name, tools = url(server), about["model"], about.get("tools")
    if as_json:
        print(json.dumps({"url": f"{base}/v1", "page": f"{base}/", **about}), flush=True)
        return
    replicas = f"{about['replicas']} replicas of " if "replicas" in about else ""
    print(f"{replicas}{name} on {base}/v1; chat with it at {base}/")
    if "backend" in about:
        backend, device = about["backend"], about["device"]
        backend += "" if device == backend else f" on {device}"
        print(
            f"backend {backend}; {format_size(about['kv_bytes'])} for keys and values; up to "
            f"{about['max_batch']} requests together, {about['max_length']:,} tokens each"
        )
    if tools:
        print(f"tools that run here when the model calls them: {', '.join(tools)}")
    if not is_loopback(server):
        note = "other machines can reach it" + ("" if keys else ", and no --api-key keeps them out")
        print(f"warning: {note}", file=sys.stderr)
    body = {"model": name, "messages": [{"role": "user", "content": "What is 2 + 2?"}]}
    key = ' -H "Authorization: Bearer $OSSIA_API_KEYS"' if keys else ""
    print(
        f"curl {base}/v1/chat/completions -H 'Content-Type: application/json'{key} "
        f"-d '{json.dumps(body)}'",
        flush=True,
    )
