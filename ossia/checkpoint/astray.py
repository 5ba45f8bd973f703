"""What a folder is that is no checkpoint, and what to do with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ossia.checkpoint.files import PICKLES

# Unsupported single-file formats by suffix, and the remedy.
_PICKLE = "pickles can run code and are never opened: convert it to safetensors"
FOREIGN = {
    ".gguf": "GGUF is not supported: use the model's safetensors",
    **dict.fromkeys(PICKLES, _PICKLE),
}

_TRAINERS = re.compile(r"checkpoint-(\d+)")  # the folders in which transformers' Trainer saves


def remedy(folder: Path) -> str:
    """The end of an error about a folder without config.json: what it is, or a file in it, and what
    to do; "" if that is unknown.
    """
    if described := kind(folder):
        return described
    foreign = next((p for p in sorted(folder.iterdir()) if p.suffix in FOREIGN), None)
    return f"; as for {foreign.name}: {FOREIGN[foreign.suffix]}" if foreign else ""


def kind(folder: Path) -> str:
    """What the folder is, if another program or a run left it, and what to do; else ""."""
    for inner in (folder, folder / "adapter"):  # ossia finetune --lora saves the second
        if (inner / "adapter_config.json").is_file():
            what = "is" if inner == folder else "holds"
            return f"; it {what} an adapter: ossia merge {_base(inner)} {inner} merged"
    if (folder / "training" / "run.json").is_file():
        return (
            f"; it is an unfinished run of ossia train or finetune, which --resume --out {folder} "
            "continues"
        )
    checkpoints = [(int(m[1]), p) for p in folder.iterdir() if (m := _TRAINERS.fullmatch(p.name))]
    if checkpoints:
        return f"; it is a Trainer's folder, whose newest checkpoint is {max(checkpoints)[1]}"
    inside = sorted(path.parent for path in folder.glob("*/config.json"))
    inside += sorted(path.parent for path in folder.glob("snapshots/*/config.json"))
    return f"; it holds {' and '.join(map(str, inside[:3]))}" if inside else ""


def _base(folder: Path) -> str:
    """The model that an adapter belongs to, as its config names it."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        name = config["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None
    return name if isinstance(name, str) and re.fullmatch(r"[\w./@-]+", name) else "BASE_MODEL"
