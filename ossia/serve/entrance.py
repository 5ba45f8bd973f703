"""The way into an application, which is the same before one model and before replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ossia.serve.gate import AccessLog, Asgi, Counts, Gate
from ossia.serve.origins import Origins, Pages


@dataclass(frozen=True)
class Rules:
    """What a request must keep to. keys: one of them must come with it; without any, none is asked
    for. max_body: the most bytes of its body, and seconds: within which that must have arrived.
    pages: the web pages that may ask; all if None.
    """

    keys: Sequence[str] = ()
    max_body: int = 2**24
    seconds: float | None = None
    pages: Pages | None = None


def entrance(app: Asgi, rules: Rules, counts: Counts) -> Asgi:
    """The application for requests that keep to the rules. All are logged and counted, the refused
    ones too.
    """
    app = Gate(app, rules.keys, rules.max_body, rules.seconds)
    if rules.pages is not None:
        app = Origins(app, rules.pages, keyless=not rules.keys)
    return AccessLog(app, counts)
