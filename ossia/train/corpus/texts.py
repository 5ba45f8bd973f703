"""A corpus as token ids in a folder: the training part and the held-out part."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ossia.text.tokenizer import END_OF_TEXT
from ossia.train.corpus import shards, sources, vocabulary
from ossia.train.corpus.documents import Corpus
from ossia.train.evaluate import HeldOut


def write(folder: Path, corpus: Corpus, tokenizer: Tokenizer, most_held_out: int) -> dict[str, Any]:
    """Write `train` and `held_out` into `folder` as shards, with a limit on the bytes of held-out
    texts; returns the description for `read` and for the record.
    """
    separator = vocabulary.control_id(tokenizer, END_OF_TEXT)
    size = tokenizer.get_vocab_size()
    held_out = sources.limited(corpus.held_out, most_held_out)
    held_out_ids = [shards.encode([document], tokenizer, separator) for document in held_out]
    parts = shards.encode_in_parts(corpus.train, tokenizer, separator)
    count = shards.write(folder / "train", parts, size)
    shards.write(folder / "held_out", held_out_ids, size)
    return {
        "separator": separator,
        "train": {
            "documents": len(corpus.train),
            "bytes": sum(d.num_bytes for d in corpus.train),
            "tokens": count,
        },
        "held_out": [
            {
                "name": document.name,
                "bytes": document.num_bytes,
                "tokens": len(ids),
                "sha256": hashlib.sha256(document.text.encode()).hexdigest(),
            }
            for document, ids in zip(held_out, held_out_ids, strict=True)
        ],
    }


def read(folder: Path, described: dict[str, Any]) -> tuple[list[Tensor], list[HeldOut]]:
    """The training shards and the held-out texts that `write` wrote and described.

    Raises OssiaError for missing files; KeyError, TypeError, ValueError or RuntimeError for a
    description that does not match.
    """
    sizes = [document["tokens"] for document in described["held_out"]]
    tokens = torch.cat([ids.int() for ids in shards.read(folder / "held_out")])
    held_out = [
        HeldOut(document["name"], ids, document["bytes"])
        for document, ids in zip(described["held_out"], tokens.split(sizes), strict=True)
    ]
    return shards.read(folder / "train"), held_out
