"""The model inside the package is what its record says: size, architecture and held-out loss."""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path

import pytest

import ossia
from ossia import checkpoint, text
from ossia.config import ExpertFormat, MoEConfig
from ossia.model import Decoder
from ossia.train.data import STDLIB_HELD_OUT, Document
from ossia.train.evaluate import HeldOut, bits_per_byte, loss_of
from ossia.train.shards import encode
from ossia.train.tokenizer import CONTROL_TOKENS, END_OF_TEXT

MODEL = Path(ossia.__file__).parent / "models" / "ossia-stdlib"
HELD_OUT = Path(__file__).parents[1] / "fixtures" / "stdlib" / "held_out.json.xz"


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((MODEL / "record.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return checkpoint.load(MODEL)


@pytest.fixture(scope="module")
def documents() -> dict[str, str]:
    return json.loads(lzma.decompress(HELD_OUT.read_bytes()))


def test_its_held_out_loss_is_what_the_record_says(
    record: dict, decoder: Decoder, documents: dict[str, str]
) -> None:
    recorded = {document["name"]: document for document in record["text"]["held_out"]}
    assert tuple(recorded) == STDLIB_HELD_OUT
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    end = tokenizer.token_to_id(END_OF_TEXT)
    held_out = []
    for name, source in documents.items():
        assert hashlib.sha256(source.encode()).hexdigest() == recorded[name]["sha256"]
        tokens = encode([Document(name, source)], tokenizer, end)
        assert len(tokens) == recorded[name]["tokens"]
        held_out.append(HeldOut(name, tokens, recorded[name]["bytes"]))
    bits = bits_per_byte(loss_of(decoder), held_out, record["settings"]["length"])
    for name in documents:
        # Sums of bfloat16 products differ in their last digits from one processor to another.
        assert bits[name] == pytest.approx(recorded[name]["bits_per_byte"], rel=5e-3)


def test_rounding_to_mxfp4_costs_less_than_one_per_cent(record: dict) -> None:
    bits = record["held_out_bits_per_byte"]
    assert bits["as_saved"] == pytest.approx(bits["as_trained"], rel=0.01)


def test_it_has_the_architecture_of_gpt_oss_and_weighs_under_8_mb(decoder: Decoder) -> None:
    assert json.loads((MODEL / "config.json").read_text())["model_type"] == "gpt_oss"
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 8_000_000
    for i, layer in enumerate(decoder.config.layers):
        assert layer.attention.sinks
        assert (layer.attention.window is None) == (i % 2 == 1)
        assert isinstance(layer.feedforward, MoEConfig)
        assert layer.feedforward.format is ExpertFormat.MXFP4


def test_its_vocabulary_speaks_harmony() -> None:
    tokenizer = text.load_tokenizer(MODEL)
    assert set(CONTROL_TOKENS) <= tokenizer.control.keys()
    assert text.load_format(MODEL, tokenizer).name == "harmony"
