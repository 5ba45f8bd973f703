"""The loss of a model on a file that it was not trained on: text, or conversations."""

from __future__ import annotations

from pathlib import Path

import torch

from ossia import checkpoint, text
from ossia.adapt.convert import Loss
from ossia.config import ModelConfig
from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.train import evaluate
from ossia.train.corpus import conversations, documents, packing
from ossia.train.settings import FineTuneSettings

_DATE = "2026-01-01"  # for prompts that contain a date; fixed, so that losses are comparable


def loss_on(data: str, model: str, ignore_unknown_keys: bool = False) -> Loss:
    """The loss on conversations (.jsonl), in nats per learned token, or on UTF-8 text, in nats per
    token, with the tokenizer of the checkpoint `model` and of any model with the same ids.

    It is measured in windows as long as the context, at most 2048 tokens. Raises OssiaError for a
    file that cannot be read, and for one with nothing to measure.
    """
    folder = checkpoint.find(model)
    config = checkpoint.read_config(folder, ignore_unknown_keys)
    where = checkpoint.text_folder(folder)
    tokenizer = text.load_tokenizer(where)
    length = min(FineTuneSettings.MOST_LENGTH, config.context_length)
    if Path(data).suffix == ".jsonl":
        return _of_conversations(data, text.load_format(where, tokenizer), config, length)
    return _of_text(data, tokenizer, length)


def _of_text(data: str, tokenizer: text.Tokenizer, length: int) -> Loss:
    try:
        ids = tokenizer.encode(documents.read_text(Path(data)))
    except OSError as error:
        raise OssiaError(f"--data {data}: {error.strerror}") from error
    if len(ids) < 2:
        raise OssiaError(f"--data {data}: holds no text")
    tokens = torch.tensor(ids)

    def loss(decoder: Decoder) -> float:
        return evaluate.nats(evaluate.loss_of(decoder), tokens, length) / (len(ids) - 1)

    return Loss("nats per token", loss)


def _of_conversations(
    data: str, chat_format: text.ChatFormat, config: ModelConfig, length: int
) -> Loss:
    examples = [
        example.truncated(length)
        for conversation in conversations.read(data, "--data")
        for example in conversations.render(conversation, chat_format, _DATE)
    ]
    conversations.check_ids(examples, config.vocab_size)
    if not any(example.learned for example in examples):
        raise OssiaError(f"--data {data}: no reply lies in the first {length} tokens")
    batches = packing.batches(examples, length)

    def loss(decoder: Decoder) -> float:
        return packing.nats_per_token(evaluate.loss_of(decoder), batches)

    return Loss("nats per learned token", loss)
