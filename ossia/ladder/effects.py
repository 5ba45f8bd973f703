"""What each rung of a trained ladder did, in words, from its results.json alone.

Reads the file without the classes of its results, whose modules import torch.
"""

from __future__ import annotations

from pathlib import Path

from ossia.errors import OssiaError
from ossia.insight.svg import number
from ossia.system.files import read_json

_VERDICTS = {"better": "lower loss", "worse": "higher loss", "unclear": "within the noise"}


def effects(place: Path) -> dict[str, str]:
    """The change in held-out bits per byte that each rung made, by its name.

    place: a ladder's folder, or its results.json. Raises OssiaError for anything else.
    """
    file = place / "results.json" if place.is_dir() else place
    data = read_json(file)
    found = {}
    try:
        for rung in data["rungs"]:
            if (change := rung.get("difference")) is not None:
                found[str(rung["name"])] = _words(change)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise OssiaError(f"{file} holds no results of `ossia ablate`") from error
    return found


def _words(change: dict) -> str:
    text, half = number(change["mean"], 4, sign=True), change["half_interval"]
    if half is not None:
        text += f" ± {number(half, 4)}"
    return f"{text} bits per byte: {_VERDICTS[change['verdict']]}"
