"""A checkpoint made from another without training: experts packed into MXFP4, adapters merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ossia import checkpoint, text
from ossia.adapt import adapters, lora, quantized
from ossia.checkpoint.load import DENSE_DTYPES
from ossia.config import ExpertFormat, ModelConfig, MoEConfig
from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.system.files import write_json
from ossia.train import evaluate
from ossia.train.corpus import conversations, packing
from ossia.train.runs.folder import beside, check_folder, writing

_LENGTH = 2048  # of the rows that the held-out loss is read in, where the context allows it

Loss = Callable[[Decoder], float]


@dataclass(frozen=True)
class HeldOutLoss:
    """Of a model on a file: nats a token of a text, or a learned token of conversations."""

    file: Path
    unit: str
    of: Loss


def quantize(model: str, out: Path, data: str = "") -> dict[str, Any]:
    """Write the checkpoint with its experts in MXFP4 into the new folder `out`; returns, and writes
    beside it, the relative error of each stack of experts, and with `data` the loss on that file
    before and after.

    data: conversations (.jsonl) or UTF-8 text. Raises OssiaError for a model without dense experts
    and for what cannot be read or written.
    """
    folder = checkpoint.find(model)
    config = checkpoint.read_config(folder)
    if ExpertFormat.MXFP4 in _formats(config):
        raise OssiaError(f"{model}: its experts are in MXFP4 already")
    if not _formats(config):
        raise OssiaError(f"{model}: the model has no experts to pack")
    check_folder(out)
    quantized.check_format(config, ExpertFormat.MXFP4)
    held_out = _held_out(folder, config, data) if data else None
    decoder = checkpoint.load(folder, expert_memory="all")
    before = held_out.of(decoder) if held_out else None
    packed, errors = lora.merged(decoder, ExpertFormat.MXFP4, DENSE_DTYPES[config.dtype])
    checkpoint.save(packed, out, extra_files=beside(folder))
    record: dict[str, Any] = {"model": model, "quantization_error": errors}
    if held_out:
        after = held_out.of(checkpoint.load(out))
        record["held_out_loss"] = {"unit": held_out.unit, "before": before, "after": after}
    _write(out / "quantization.json", record)
    return record


def merge(model: str, adapter: Path, out: Path, experts: str = "") -> dict[str, Any]:
    """Write the checkpoint with peft's adapter added into the new folder `out`; experts in the
    format that they had, unless `experts` names another. Returns, and writes beside it, the
    relative error of each stack of experts that was packed.
    """
    folder = checkpoint.find(model)
    config = checkpoint.read_config(folder)
    check_folder(out)
    formats = _formats(config)
    if experts and not formats:
        raise OssiaError("--experts needs a model with experts")
    chosen = ExpertFormat(experts) if experts else next(iter(formats), ExpertFormat.DENSE)
    if formats:
        quantized.check_format(config, chosen)
    decoder = lora.load_base(folder)
    adapters.load(decoder, adapter)
    merged, errors = lora.merged(decoder, chosen, DENSE_DTYPES[config.dtype])
    checkpoint.save(merged, out, extra_files=beside(folder))
    record = {"model": model, "adapter": adapter.name, "quantization_error": errors}
    _write(out / "merge.json", record)
    return record


def _formats(config: ModelConfig) -> set[ExpertFormat]:
    """Of the model's experts."""
    return {x.feedforward.format for x in config.layers if isinstance(x.feedforward, MoEConfig)}


def _held_out(folder: Path, config: ModelConfig, data: str) -> HeldOutLoss:
    where = checkpoint.text_folder(folder)
    tokenizer = text.load_tokenizer(where)
    file, length = Path(data), min(_LENGTH, config.context_length)
    if file.suffix == ".jsonl":
        return _of_conversations(file, text.load_format(where, tokenizer), config, length)
    try:
        ids = tokenizer.encode(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OssiaError(f"--data {data}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OssiaError(f"{file}: not UTF-8 text (byte {error.start})") from error
    if len(ids) < 2:
        raise OssiaError(f"--data {data}: holds no text")
    tokens = torch.tensor(ids)

    def loss(decoder: Decoder) -> float:
        return evaluate.nats(evaluate.loss_of(decoder), tokens, length) / (len(ids) - 1)

    return HeldOutLoss(file, "nats per token", loss)


def _of_conversations(
    file: Path, chat_format: text.ChatFormat, config: ModelConfig, length: int
) -> HeldOutLoss:
    date = "2026-01-01"  # before and after alike; any day that prompts may name
    examples = [
        example.truncated(length)
        for conversation in conversations.read(str(file), "--data")
        for example in conversations.render(conversation, chat_format, date)
    ]
    conversations.check_ids(examples, config.vocab_size)
    if not any(example.learned for example in examples):
        raise OssiaError(f"--data {file}: no reply lies in the first {length} tokens")
    batches = packing.batches(examples, length)

    def loss(decoder: Decoder) -> float:
        return packing.nats_per_token(evaluate.loss_of(decoder), batches)

    return HeldOutLoss(file, "nats per learned token", loss)


def _write(file: Path, record: dict[str, Any]) -> None:
    with writing(file.parent):
        write_json(file, record)
