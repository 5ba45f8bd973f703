"""The effect of formats of dense weights, activations, keys and values on the logits of the model
inside the package.

    python bench/precision.py [--chats N]

Reads held-out chats with everything in float32, and with parts in other formats. Prints one JSON
line for each: the loss, the KL divergence from float32, how often the likeliest token is the same,
and the relative error of the logits, all over the tokens of replies.
"""

from __future__ import annotations

import argparse
import json
import lzma
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import ossia
from ossia import text
from ossia.api import packaged_model
from ossia.model import Decoder
from ossia.ops.paged import PagedKV, PagePool
from ossia.train.corpus import conversations
from ossia.train.corpus.conversations import Example
from ossia.train.loss import IGNORED

CHUNK = 512
FORMATS = {  # options of the model, and the format of keys and values
    "float32": ({"dtype": "float32"}, torch.float32),
    "kv bfloat16": ({"dtype": "float32"}, torch.bfloat16),
    "kv int8": ({"dtype": "float32"}, torch.int8),
    "dense int8": ({"dtype": "float32", "dense": "int8"}, torch.float32),
    "activations int8": ({"dtype": "float32", "activations": "int8"}, torch.float32),
    "dense, activations int8": (
        {"dtype": "float32", "dense": "int8", "activations": "int8"},
        torch.float32,
    ),
    "bfloat16": ({"dtype": "bfloat16"}, torch.bfloat16),
    "bfloat16, dense int8": ({"dtype": "bfloat16", "dense": "int8"}, torch.bfloat16),
    "bfloat16, activations int8": (
        {"dtype": "bfloat16", "activations": "int8"},
        torch.bfloat16,
    ),
    "bfloat16, dense, activations int8": (
        {"dtype": "bfloat16", "dense": "int8", "activations": "int8"},
        torch.bfloat16,
    ),
}
CHATS = Path(__file__).parent.parent / "tests/fixtures/dialogues/held_out.jsonl.xz"


def chats(folder: Path) -> list[Example]:
    """All held-out chats, as prompts and replies."""
    chat_format = text.load_format(folder, text.load_tokenizer(folder))
    with tempfile.TemporaryDirectory() as made:
        file = Path(made) / "held_out.jsonl"
        file.write_bytes(lzma.decompress(CHATS.read_bytes()))
        read = conversations.read(str(file), "chats")
    return [e for one in read for e in conversations.render(one, chat_format, "2026-01-01")]


def logits(decoder: Decoder, dtype: torch.dtype, ids: list[int]) -> Tensor:
    kinds = decoder.layer_kinds
    pages = -(-len(ids) // 16)
    pool = PagePool(kinds, dict.fromkeys(kinds, pages), page_size=16, dtype=dtype)
    tables = dict.fromkeys(kinds, torch.arange(pages, dtype=torch.int32)[None])
    found = []
    for start in range(0, len(ids), CHUNK):
        chunk = torch.tensor(ids[start : start + CHUNK])
        end = start + len(chunk)
        kv = PagedKV(pool, tables, torch.tensor([end]), torch.tensor([len(chunk)]))
        found.append(decoder(chunk, torch.arange(start, end), kv))
    return torch.cat(found).double()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chats", type=int, default=228, help="texts, of the 777 held out")
    options = parser.parse_args()
    if options.chats < 1:
        parser.error("--chats must be at least 1")
    folder = packaged_model()
    decoders = {
        name: (ossia.load_model(str(folder), **asked), kv) for name, (asked, kv) in FORMATS.items()
    }
    examples = chats(folder)[: options.chats]
    sums = {name: torch.zeros(5, dtype=torch.float64) for name in FORMATS}
    count = sum(example.learned for example in examples)
    for example in examples:
        ids, learned = example.inputs.tolist(), example.targets != IGNORED
        targets = example.targets[learned, None]
        exact = logits(*decoders["float32"], ids)[learned]
        log_exact = exact.log_softmax(-1)
        for name, total in sums.items():
            found = logits(*decoders[name], ids)[learned]
            log_found = found.log_softmax(-1)
            total += torch.stack(
                [
                    -log_found.gather(1, targets).sum(),
                    (log_exact.exp() * (log_exact - log_found)).sum(),
                    (exact.argmax(-1) == found.argmax(-1)).double().sum(),
                    (found - exact).square().sum(),
                    (exact - exact.mean(-1, keepdim=True)).square().sum(),
                ]
            )
    for name, total in sums.items():
        loss, divergence, same = (total[:3] / count).tolist()
        print(
            json.dumps(
                {
                    "formats": name,
                    "loss": round(loss, 4),
                    "kl_divergence": round(divergence, 6),
                    "same_likeliest": round(same, 4),
                    "logits_error": round(float((total[3] / total[4]).sqrt()), 4),
                    "chats": len(examples),
                    "tokens": count,
                }
            )
        )


if __name__ == "__main__":
    main()
