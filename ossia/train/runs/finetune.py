"""A run from a checkpoint and conversations: the model learns every reply, and is saved in the
checkpoint's own format.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ossia import checkpoint, text
from ossia.adapt import adapters, lora
from ossia.adapt.formats import check_format, unpacked
from ossia.checkpoint.contents import DENSE_DTYPES
from ossia.config import ExpertFormat, ModelConfig, expert_formats, with_expert_format
from ossia.errors import OssiaError
from ossia.insight.counts import count
from ossia.model import Decoder
from ossia.model.feedforward import MoE
from ossia.ops.training import Training, for_device
from ossia.options import Dtype, LoadOptions
from ossia.system.files import write_json, writing
from ossia.train import budget, parallel
from ossia.train.corpus import conversations, packing
from ossia.train.corpus.conversations import Conversation, Example
from ossia.train.device import CPU
from ossia.train.evaluate import SummedLoss, loss_of
from ossia.train.loop import Trainer
from ossia.train.runs.folder import FolderRun, Prepared
from ossia.train.settings import FineTuneSettings, TooLong

_SAMPLED = 1 << 20  # bytes at each end of a file that its fingerprint covers


class FineTuning(FolderRun):
    """A run of `ossia finetune`."""

    COMMAND, SETTINGS = "finetune", FineTuneSettings
    settings: FineTuneSettings

    @classmethod
    def prepare(cls, settings: FineTuneSettings, device: torch.device) -> Prepared:
        model = checkpoint.find(settings.model)
        stored = checkpoint.read_config(model, settings.ignore_unknown_keys)
        settings = _settled(settings, stored)
        estimate(stored, settings, device).refuse_more_than_there_is(device, _hint(settings))
        where = checkpoint.text_folder(model)
        chat_format = text.load_format(where, text.load_tokenizer(where))
        train, held_out = _read(settings)
        texts = {
            name: _fitting(_examples(part, chat_format, settings, stored), settings)
            for name, part in (("train", train), ("held_out", held_out))
        }
        if not texts["train"]:
            raise OssiaError(f"--data {settings.data}: no conversation fits into --length")
        last = {int(example.targets[-1]) for example in texts["train"]}

        def write(out: Path) -> dict[str, Any]:
            rows = {
                name: packing.write(out / "training" / name, examples, settings.length)
                for name, examples in texts.items()
                if examples
            }
            steps = settings.steps or math.ceil(
                settings.epochs * rows["train"] / settings.batch_size
            )
            files = {"train": settings.data, "held_out": settings.eval_data or settings.data}
            return {
                "settings": asdict(replace(settings, steps=steps).settled()),
                "model": {
                    "name": settings.model,
                    "fingerprint": fingerprint(model),
                    "ends": sorted(last & chat_format.stop_ids),
                },
                "data": {
                    name: {
                        "file": Path(files[name]).name,
                        "sha256": conversations.digest(files[name]),
                        "conversations": len({example.where for example in examples}),
                        "texts": len(examples),
                        "tokens": sum(map(len, examples)),
                        "learned": sum(example.learned for example in examples),
                        "rows": rows.get(name, 0),
                    }
                    for name, examples in texts.items()
                },
            }

        return write

    def read(self, described: dict[str, Any]) -> None:
        settings = self.settings
        self.model, self.data = described["model"], described["data"]
        self.base = checkpoint.find(settings.model)
        if fingerprint(self.base) != self.model["fingerprint"]:
            raise OssiaError(f"{self.base} is another checkpoint than the run began with")
        self._rows = packing.Rows(
            self.folder / "train", settings.length, settings.batch_size, settings.seed
        )
        self._held_out = None
        if self.data["held_out"]["rows"]:
            self._held_out = packing.Rows(self.folder / "held_out", settings.length)

    def build(self) -> None:
        ignore_unknown = self.settings.ignore_unknown_keys
        self.stored = checkpoint.read_config(self.base, ignore_unknown)
        self.estimate = estimate(self.stored, self.settings, self.device)
        self.estimate.refuse_more_than_there_is(self.device, _hint(self.settings))
        self.notes = [f"training takes {self.estimate}"]
        if self.settings.lora:
            self.decoder = lora.load_base(self.base, ignore_unknown, self.device)
            generator = torch.Generator().manual_seed(self.settings.seed)
            lora.attach(self.decoder, _lora(self.settings), generator)
        else:
            self.decoder = dense(self.base, ignore_unknown, for_device(self.device))
            if not self.settings.train_router:
                freeze_routers(self.decoder)
        self.decoder.to(self.device)
        self.trainer = Trainer(
            self.decoder, self._rows, self._figures, self.settings, self.folder / "states"
        )

    def _figures(self, loss: SummedLoss) -> dict[str, float]:
        if self._held_out is None:
            return {}
        return {"held_out_loss": packing.nats_per_token(loss, self._held_out)}

    def train(self, report=lambda _: None, stopped=lambda: False) -> bool:
        """As FolderRun.train. The curve begins with the loss of the untrained checkpoint."""
        if not self.trainer.progress.curve:
            self.trainer.evaluate(None)
        return super().train(report, stopped)

    def export(self) -> dict[str, Any]:
        """As FolderRun.export. Of updates the adapter is written, and with --merge the checkpoint
        too.
        """
        experts = self.settings.experts or ExpertFormat.DENSE
        merges = not self.settings.lora or self.settings.merge
        trained_model = self.decoder
        if not self.settings.lora:
            weights = parallel.gathered(self.decoder)
            if parallel.rank() != 0:
                return {}
            trained_model = Decoder.assembled(self.decoder.config, weights)
        self.check_claim()
        trained = sum(p.numel() for p in self.decoder.parameters() if p.requires_grad)
        errors = self._save_checkpoint(trained_model, experts) if merges else {}
        saved: dict[str, Any] = {"checkpoint": merges, "adapter": self.settings.lora}
        if self.settings.lora:
            saved["adapter_bytes"] = self._save_adapter()
        counts = count(with_expert_format(self.stored, experts))
        record = {
            **self.circumstances(),
            "saved": saved,
            "parameters": {
                "total": counts.parameters,
                "active": counts.active_parameters,
                "trained": trained,
            },
            "quantization_error": errors,
            "memory": vars(self.estimate),
            "model": self.model,
            "data": self.data,
            "settings": asdict(self.settings),
            "curve": self.trainer.progress.curve,
        }
        if self._held_out is not None:
            reloaded = self._reloaded()
            record["held_out_loss"] = {
                "before": record["curve"][0]["held_out_loss"],
                "as_trained": record["curve"][-1]["held_out_loss"],
                "as_saved": packing.nats_per_token(loss_of(reloaded), self._held_out),
            }
        self.finish(record)
        return record

    def _save_checkpoint(self, trained: Decoder, experts: ExpertFormat) -> dict[str, float]:
        """The relative error of each stack of experts that was packed."""
        errors = checkpoint.save(
            trained,
            self.out,
            experts=experts if expert_formats(self.stored) else None,
            dtype=DENSE_DTYPES[self.stored.dtype],
            extra_files=checkpoint.text_files(self.base),
        )
        with writing(self.out):
            _add_ends(self.out, self.model.get("ends", ()), self.stored)
        return errors

    @property
    def adapter(self) -> Path:
        """Where the updates are saved."""
        return self.out / "adapter"

    def _save_adapter(self) -> int:
        """Write the updates, and where the model is to stop at other ids its generation_config.json
        with them. Returns the bytes.
        """
        with writing(self.out):
            adapters.save(self.decoder, self.adapter, _lora(self.settings), self.settings.model)
            for file in checkpoint.text_files(self.base):
                if file.name == adapters.GENERATION:
                    shutil.copy2(file, self.adapter)
            _add_ends(self.adapter, self.model.get("ends", ()), self.stored)
        return sum(file.stat().st_size for file in self.adapter.iterdir())

    def _reloaded(self) -> Decoder:
        """The model as saved. An adapter is read back into the decoder, where it is, in the place
        of its updates, as memory may not hold a second one.
        """
        if not self.settings.lora or self.settings.merge:
            return checkpoint.load(self.out, LoadOptions(device="cpu"))
        lora.detach(self.decoder)
        adapters.load(self.decoder, self.adapter)
        return self.decoder.eval()


def _add_ends(folder: Path, ends: Sequence[int], config: ModelConfig) -> None:
    """Have a saved model stop, in any program, at the ids with which the replies it learned end:
    those of a base model's template are not in its generation_config.json.
    """
    settings = text.read_generation_config(folder)
    known = text.end_of_text_ids(settings) or frozenset(config.eos_ids)
    if more := [id for id in ends if id not in known]:
        settings["eos_token_id"] = [*more, *sorted(known)]
        write_json(folder / "generation_config.json", settings)


def estimate(
    stored: ModelConfig, settings: FineTuneSettings, device: torch.device = CPU
) -> budget.Estimate:
    """The memory that fine-tuning a checkpoint takes on a device."""
    if settings.lora:
        return budget.adapters(stored, settings, _lora(settings), device)
    return budget.full(with_expert_format(stored, ExpertFormat.DENSE), settings, device)


def _hint(settings: FineTuneSettings) -> str:
    """What takes less memory."""
    smaller = "use fewer --targets or a lower --rank, or " if settings.lora else ""
    return smaller + budget.SAVE_MEMORY


def _lora(settings: FineTuneSettings) -> lora.LoRA:
    targets = (*settings.targets.split(","), *(("router",) if settings.train_router else ()))
    return lora.LoRA(settings.rank, settings.alpha, settings.lora_dropout, targets)


def dense(folder: Path, ignore_unknown_keys: bool = False, ops: Training | None = None) -> Decoder:
    """A checkpoint's model in the form for training: in float32, with unpacked experts; on the CPU,
    whose backend computes unless another is given.
    """
    stored = checkpoint.load(
        folder,
        LoadOptions(
            dtype=Dtype.float32,
            device="cpu",
            backend="reference",
            expert_memory="all",
            ignore_unknown_keys=ignore_unknown_keys,
        ),
    )
    weights = stored.state_dict()
    config = with_expert_format(stored.config, ExpertFormat.DENSE)
    with torch.device("meta"):
        names = Decoder(config).state_dict()
    return Decoder.assembled(config, unpacked(weights, names), ops or Training())


def freeze_routers(decoder: Decoder) -> None:
    """Exclude routers from training: on few examples they learn to neglect experts, not to choose
    better.
    """
    for module in decoder.modules():
        if isinstance(module, MoE):
            module.router.requires_grad_(False)


def fingerprint(folder: Path) -> str:
    """A hash of a checkpoint's config and of the size, beginning and end of each weight file."""
    seen = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        seen.update(f"{file.name} {size}".encode())
        with file.open("rb") as opened:
            seen.update(opened.read(_SAMPLED))
            opened.seek(max(0, size - _SAMPLED))
            seen.update(opened.read(_SAMPLED))
    return seen.hexdigest()


def _settled(settings: FineTuneSettings, stored: ModelConfig) -> FineTuneSettings:
    """The settings with everything filled in that depends on the checkpoint and the date.

    Raises OssiaError if they do not suit the checkpoint.
    """
    context = stored.context_length
    if settings.length > context:
        raise OssiaError(f"--length {settings.length}: the model's context is {context:,} tokens")
    formats = expert_formats(stored)
    if not formats and (settings.experts or settings.mxfp4_steps):
        raise OssiaError("--experts and --mxfp4-steps need a model with experts")
    experts = settings.experts or next(iter(formats), None)
    if settings.lora and not settings.merge and experts not in (None, *formats):
        raise OssiaError("--experts needs --merge: an adapter holds no experts")
    if settings.mxfp4_steps and experts is not ExpertFormat.MXFP4:
        raise OssiaError("--mxfp4-steps needs experts that are saved as mxfp4")
    if settings.expert_parallel and not experts:
        raise OssiaError("--expert-parallel needs a model with experts")
    if settings.lora and parallel.size() > 1:
        raise OssiaError("--lora trains on one process")
    if experts:
        check_format(stored, experts)
    return replace(
        settings,
        experts=experts,
        length=settings.length or min(FineTuneSettings.MOST_LENGTH, context),
        date=settings.date or datetime.date.today().isoformat(),
    )


def _read(settings: FineTuneSettings) -> tuple[list[Conversation], list[Conversation]]:
    """The conversations to train on, and the held-out ones."""
    read = conversations.read(settings.data, "--data")
    if settings.eval_data:
        return read, conversations.read(settings.eval_data, "--eval-data")
    if not settings.eval_share:
        return read, []
    return conversations.split(read, settings.eval_share, settings.seed)


def _examples(
    part: Sequence[Conversation],
    chat_format: text.ChatFormat,
    settings: FineTuneSettings,
    stored: ModelConfig,
) -> list[Example]:
    examples = [
        example
        for conversation in part
        for example in conversations.render(conversation, chat_format, settings.date)
    ]
    conversations.check_ids(examples, stored.vocab_size)
    return examples


def _fitting(examples: Sequence[Example], settings: FineTuneSettings) -> list[Example]:
    """The examples that fit into a row, after truncating if the settings say so."""
    fitting = []
    for example in examples:
        if len(example) > settings.length:
            if settings.too_long == TooLong.ERROR:
                raise OssiaError(
                    f"{example.where}: {len(example)} tokens, more than --length "
                    f"{settings.length}; raise it, or decide by --too-long truncate or skip"
                )
            example = example.truncated(settings.length)
            if settings.too_long == TooLong.SKIP or not example.learned:
                continue
        fitting.append(example)
    return fitting
