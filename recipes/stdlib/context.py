"""A checkpoint's copy for a longer context, by a larger factor of YaRN."""

from __future__ import annotations

import shutil
from pathlib import Path

from ossia import checkpoint
from ossia.errors import OssiaError
from ossia.system.files import check_new_folder, read_json, replacing, write_json, writing

_FILES = ("model.safetensors", "tokenizer.json", "generation_config.json")


def extended(model: Path, out: Path, context: int) -> None:
    """Write `model` into the new folder `out`, for `context` tokens.

    YaRN's factor is the new context relative to the one before YaRN (Peng et al. 2023,
    https://arxiv.org/abs/2309.00071). Raises OssiaError for a model without YaRN, and for a context
    that is not longer.
    """
    before = checkpoint.read_config(model)
    config, tokens = read_json(model / "config.json"), read_json(model / "tokenizer_config.json")
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") != "yarn":
        raise OssiaError(f"{model} does not use YaRN")
    if context <= before.context_length:
        raise OssiaError(f"--context {context}: the model has {before.context_length} already")
    factor = context / scaling["original_max_position_embeddings"]
    check_new_folder(out)
    with writing(out), replacing(out) as new:
        for name in _FILES:
            shutil.copy(model / name, new)
        longer = {"max_position_embeddings": context, "rope_scaling": scaling | {"factor": factor}}
        write_json(new / "config.json", config | longer)
        write_json(new / "tokenizer_config.json", tokens | {"model_max_length": context})
