"""A run from text: a vocabulary and a model learned from nothing, a Hugging Face checkpoint and the
record of its making left in a folder.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ossia import checkpoint, families
from ossia.config import ExpertFormat, ModelConfig, expert_formats, with_expert_format
from ossia.errors import OssiaError
from ossia.insight.counts import count
from ossia.model import Decoder
from ossia.ops.training import for_device
from ossia.options import LoadOptions
from ossia.system.files import write_json, writing
from ossia.train import parallel
from ossia.train.corpus import documents, shards, sources, texts, vocabulary
from ossia.train.evaluate import SummedLoss, bits_per_byte, loss_of
from ossia.train.loop import Trainer
from ossia.train.runs import presets
from ossia.train.runs.folder import FolderRun, Prepared
from ossia.train.settings import Settings
from ossia.train.utilization import Utilization

# Enough to distinguish models in the third digit, and quick to evaluate on a CPU.
_MOST_HELD_OUT_BYTES = 1 << 18

# For generation_config.json: at temperature 1 a small model soon loses the thread.
_TEMPERATURE = 0.7


class Run(FolderRun):
    """A run of `ossia train`."""

    COMMAND, SETTINGS = "train", Settings
    settings: Settings

    @classmethod
    def prepare(cls, settings: Settings, device: torch.device) -> Prepared:  # noqa: ARG003
        corpus = sources.read(settings.data)
        seen = list(corpus.train)
        if settings.vocabulary_data:
            seen += documents.read(settings.vocabulary_data, "--vocabulary-data")
        tokenizer = vocabulary.learn((document.text for document in seen), settings.vocab_size)
        config = presets.architecture(settings.config, tokenizer, settings.ignore_unknown_keys)
        _check(settings, config)

        def write(out: Path) -> dict[str, Any]:
            folder = out / "training"
            vocabulary.write(tokenizer, out, config.context_length)
            text = texts.write(folder, corpus, tokenizer, _MOST_HELD_OUT_BYTES)
            train, _ = texts.read(folder, text)
            shards.TextBatches(train, settings, text["separator"])  # raises for too short a text
            return {
                "settings": asdict(settings.settled()),
                "config": families.to_hf(config),
                "text": text,
            }

        return write

    def read(self, described: dict[str, Any]) -> None:
        self.text: dict[str, Any] = described["text"]
        self.config = families.from_hf(described["config"], str(self.folder / "run.json"))
        self._shards, self.held_out = texts.read(self.folder, self.text)
        self._separator = int(self.text["separator"])

    def build(self) -> None:
        try:
            self.decoder = Decoder(self.config, for_device(self.device))
        except (RuntimeError, TypeError, OverflowError) as error:  # torch raises any of these
            reason = str(error).partition("\n")[0]
            raise OssiaError(f"the model is too large for this machine ({reason})") from error
        # On the CPU, so that the first weights are the same on every device.
        self.decoder.init_weights(torch.Generator().manual_seed(self.settings.seed))
        self.decoder.to(self.device)
        self.trainer = Trainer(
            self.decoder,
            shards.TextBatches(self._shards, self.settings, self._separator),
            lambda loss: {"held_out_bits_per_byte": self._bits_per_byte(loss)[""]},
            self.settings,
            self.folder / "states",
        )

    def utilization(self) -> Utilization:
        return Utilization(self.config, self.settings, self.device)

    def export(self) -> dict[str, Any]:
        weights = parallel.gathered(self.decoder)
        trained = self._bits_per_byte(self.trainer.summed_loss)
        if parallel.rank() != 0:
            return {}
        self.check_claim()
        has_experts = bool(expert_formats(self.config))
        experts = self.settings.experts if has_experts else None
        trained_model = Decoder.assembled(self.config, weights)
        checkpoint.save(trained_model, self.out, experts=experts, dtype=torch.bfloat16)
        with writing(self.out):
            write_json(self.out / "generation_config.json", _generation_config(self.config))
            record = self._record(checkpoint.load(self.out, LoadOptions(device="cpu")), trained[""])
        self.finish(record)
        return record

    def _bits_per_byte(self, loss: SummedLoss) -> dict[str, float]:
        return bits_per_byte(loss, self.held_out, self.settings.length)

    def _record(self, saved: Decoder, trained: float) -> dict[str, Any]:
        context = self.config.context_length
        at_length = self._bits_per_byte(loss_of(saved))
        at_context = bits_per_byte(loss_of(saved), self.held_out, context)
        for document in self.text["held_out"]:
            document["bits_per_byte"] = at_length[document["name"]]
        counts = count(saved.config)
        return {
            **self.circumstances(),
            "parameters": {"total": counts.parameters, "active": counts.active_parameters},
            "held_out_bits_per_byte": {
                "as_trained": trained,
                "as_saved": at_length[""],
                f"as_saved_at_{context}_tokens": at_context[""],
            },
            "text": self.text,
            "settings": asdict(self.settings),
            "curve": self.trainer.progress.curve,
        }


def _check(settings: Settings, config: ModelConfig) -> None:
    """Raise OssiaError if the settings do not suit the model."""
    longest = max(settings.length, settings.long_length)
    if longest > config.context_length:
        raise OssiaError(
            f"the model's context is {config.context_length:,} tokens, too short for {longest:,}"
        )
    has_experts = bool(expert_formats(config))
    if settings.mxfp4_steps and not (has_experts and settings.experts == ExpertFormat.MXFP4):
        raise OssiaError("--mxfp4-steps needs a model with experts, saved as mxfp4")
    if settings.expert_parallel and not has_experts:
        raise OssiaError("--expert-parallel needs a model with experts")
    if has_experts and settings.experts == ExpertFormat.MXFP4:
        # Raises now, rather than after hours of training.
        families.to_hf(with_expert_format(config, ExpertFormat.MXFP4))


def _generation_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "bos_token_id": config.bos_id,
        "eos_token_id": list(config.eos_ids),
        "pad_token_id": config.pad_id,
    }
