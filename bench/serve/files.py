"""The files that are served: a preset's shapes with random weights and a vocabulary of made-up
words, as a checkpoint and as GGUF.
"""

from __future__ import annotations

import os
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from bench.peers_cpu.files import make_checkpoint
from ossia import checkpoint
from ossia.families import PRESETS
from ossia.options import LoadOptions

_END = "<|endoftext|>"


def make_served(name: str, folder: Path) -> Path:
    """The folder's checkpoint of a preset, with a tokenizer, made if absent."""
    path = make_checkpoint(name, folder)
    if not (path / "tokenizer.json").exists():
        words = vocabulary(PRESETS[name].vocab_size)
        inner = tokenizers.Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, []))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        inner.add_special_tokens([_END])
        inner.save(str(path / "tokenizer.json"))
    return path


def vocabulary(size: int) -> list[str]:
    """The bytes, as words that no text is split into, and the end of a text."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*symbols, *(f"w{n}" for n in range(size - len(symbols) - 1)), _END]


def make_gguf(source: Path, path: Path) -> Path:
    """A checkpoint's GGUF in bfloat16 with the same vocabulary, made if absent."""
    if path.exists():
        return path
    from bench.peers_cpu import gguf_files

    decoder = checkpoint.load(source, LoadOptions(backend="reference"))
    unfinished = path.with_suffix(".unfinished")
    words = vocabulary(decoder.config.vocab_size)
    gguf_files.write(decoder, unfinished, gguf_files.Type.BF16, words)
    os.replace(unfinished, path)
    return path
