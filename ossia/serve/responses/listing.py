"""The items of a response's input, page by page."""

from __future__ import annotations

from typing import Any

from ossia.serve.errors import ApiError
from ossia.serve.responses.items import Items


def page(items: Items, limit: int, order: str, after: str | None) -> dict[str, Any]:
    """At most `limit` items, oldest first if the order is asc, those after the item of the id
    `after`. Raises ApiError if there is none of that id.
    """
    shown = [_shown(item) for item in (items if order == "asc" else reversed(items))]
    begin = 0
    if after is not None:
        places = (n for n, item in enumerate(shown) if item["id"] == after)
        if (place := next(places, None)) is None:
            raise ApiError(400, f"after: there is no item '{after}'", param="after")
        begin = place + 1
    data = shown[begin : begin + limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else "",
        "last_id": data[-1]["id"] if data else "",
        "has_more": begin + limit < len(shown),
    }


def _shown(item: dict[str, Any]) -> dict[str, Any]:
    """The item in full: a text is a list of parts, and every item has a status."""
    item = {"status": "completed"} | item
    if item["type"] == "message":
        kind = "output_text" if item["role"] == "assistant" else "input_text"
        content = item["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        more = {"annotations": []} if kind == "output_text" else {}
        item["content"] = [{**more, **part, "type": kind} for part in parts]
    if item["type"] == "reasoning":
        item.setdefault("summary", [])
    return item
