"""The files that are measured: checkpoints of a preset's shapes with random weights, and the same
weights as GGUF. Existing files are used again.
"""

from __future__ import annotations

import os
from pathlib import Path

from ossia import checkpoint
from ossia.errors import OssiaError
from ossia.families import PRESETS
from ossia.measure.random_weights import random_decoder
from ossia.options import LoadOptions


def make_checkpoint(name: str, folder: Path) -> Path:
    """The folder's checkpoint of a preset, made if absent."""
    path = folder / name
    if not (path / "config.json").exists():
        checkpoint.save(random_decoder(PRESETS[name], copy=False), path)
    return path


def make_gguf(source: Path, path: Path, precision: str) -> Path:
    """A checkpoint's GGUF, its dense matrices in `precision`, made if absent.

    Raises OssiaError without the package that writes it.
    """
    if path.exists():
        return path
    try:
        from bench.peers_cpu import gguf_files
    except ImportError as error:
        raise OssiaError(f"{error}: pip install -e '.[peers]'") from error
    types = {"Q8_0": gguf_files.Type.Q8_0, "bfloat16": gguf_files.Type.BF16}
    unfinished = path.with_suffix(".unfinished")
    decoder = checkpoint.load(source, LoadOptions(backend="reference"))
    gguf_files.write(decoder, unfinished, types[precision])
    os.replace(unfinished, path)
    return path
