"""Event streams as they were once looked at and found right, in tests/fixtures/events."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "fixtures" / "events"
_ID = re.compile(r"\b(resp|rs|msg|fc|item|call|toolu)_[0-9a-f]{24,}\w*")
_TIMES = ("created_at", "completed_at")


def check(name: str, events: list[dict[str, Any]]) -> None:
    """Compare events with those of the file, but for what differs in each run: ids and times. With
    OSSIA_WRITE_GOLDEN=1 the file is written instead, to be looked at again.
    """
    ids: dict[str, str] = {}
    text = json.dumps([_timeless(event) for event in events], ensure_ascii=False)
    text = _ID.sub(lambda match: ids.setdefault(match[0], f"{match[1]}_{len(ids)}"), text)
    lines = [json.dumps(event, ensure_ascii=False) for event in json.loads(text)]
    file = FOLDER / f"{name}.jsonl"
    if os.environ.get("OSSIA_WRITE_GOLDEN"):
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert lines == file.read_text(encoding="utf-8").splitlines()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: 0 if key in _TIMES and inner is not None else _timeless(inner)
            for key, inner in value.items()
        }
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value
