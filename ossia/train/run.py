"""A whole run in a folder: text in, a Hugging Face checkpoint and the record of its making out.

The folder holds `tokenizer.json` from the start, `training/` (settings, tokens, states) until the
end, then the checkpoint and `record.json`.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tokenizers
import torch

from ossia import checkpoint, families
from ossia.checkpoint.files import read_json
from ossia.config import ExpertFormat, ModelConfig, MoEConfig, with_expert_format
from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.ops.training import TRAINING
from ossia.train import data, parallel, presets, quantized, shards, texts, tokenizer
from ossia.train.evaluate import bits_per_byte, loss_of
from ossia.train.loop import StepReport, Trainer
from ossia.train.settings import Settings, option

# Enough to tell models apart to the third digit, and quick to evaluate on a CPU.
_MOST_HELD_OUT_BYTES = 1 << 18

# A small model sampled at 1 wanders off; what transformers and `ossia generate` read.
_TEMPERATURE = 0.7


class Run:
    """A run that can be trained, stopped, resumed and exported; made by `start` or `resume`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        folder = out / "training"
        if (out / "record.json").exists():
            raise OssiaError(f"{out} holds a finished run; there is nothing to resume")
        file = folder / "run.json"
        if not file.is_file():
            raise OssiaError(f"{out} holds no run to resume")
        described = read_json(file)
        try:
            self.settings = Settings(**described["settings"])
            self.text: dict[str, Any] = described["text"]
            self.config = families.from_hf(described["config"], str(file))
            train, self.held_out = texts.read(folder, self.text)
            separator = int(self.text["separator"])
        except OssiaError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise OssiaError(f"{file}: not the description of a run ({error})") from error
        try:
            self.decoder = Decoder(self.config, TRAINING)
        except (RuntimeError, TypeError, OverflowError) as error:  # torch's ways to say so
            reason = str(error).partition("\n")[0]
            raise OssiaError(f"the model is too large for this machine ({reason})") from error
        self.decoder.init_weights(torch.Generator().manual_seed(self.settings.seed))
        self.trainer = Trainer(
            self.decoder,
            train,
            self.held_out,
            self.settings,
            folder / "states",
            separator,
        )

    @classmethod
    def start(cls, settings: Settings, out: Path) -> Run:
        """Read the text, learn the vocabulary and write both into the new folder `out`; of several
        processes the first does it.

        Raises OssiaError for a folder in use and for text, sizes or formats that cannot work.
        """
        if parallel.rank() != 0:
            parallel.wait()
            return cls(out)
        _check_folder(out)
        prepared = _prepare(settings)
        with _writing(out), _removed_on_failure(out):
            prepared(out)
            parallel.wait()
            return cls(out)

    @classmethod
    def resume(cls, out: Path) -> Run:
        """Continue the run in `out` from its last saved state, or from its first step."""
        run = cls(out)
        run.trainer.resume()
        return run

    def train(
        self,
        report: Callable[[StepReport], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train on: True at the last step, False if `stopped()` said so; the state is saved."""
        return self.trainer.run(report, stopped)

    def export(self) -> dict[str, Any]:
        """Write the checkpoint, evaluate it as a user will load it, write and return the record; of
        several processes the first does it, and the others return nothing.
        """
        weights = parallel.gathered(self.decoder)
        trained = self.trainer.bits_per_byte(self.settings.length)
        if parallel.rank() != 0:
            return {}
        has_experts = any(isinstance(x.feedforward, MoEConfig) for x in self.config.layers)
        experts = ExpertFormat(self.settings.experts) if has_experts else ExpertFormat.DENSE
        checkpoint.save(quantized.to_save(weights, self.config, experts), self.out)
        with _writing(self.out):
            _write_json(self.out / "generation_config.json", _generation_config(self.config))
            record = self._record(checkpoint.load(self.out), trained[""])
            _write_json(self.out / "record.json", record)
        shutil.rmtree(self.out / "training")
        return record

    def _record(self, saved: Decoder, trained: float) -> dict[str, Any]:
        length, context = self.settings.length, self.config.context_length
        at_length = bits_per_byte(loss_of(saved), self.held_out, length)
        at_context = bits_per_byte(loss_of(saved), self.held_out, context)
        for document in self.text["held_out"]:
            document["bits_per_byte"] = at_length[document["name"]]
        progress = self.trainer.progress
        return {
            "command": command(self.settings, self.out),
            "versions": {
                "ossia": version("ossia"),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "tokenizers": tokenizers.__version__,
            },
            "threads": torch.get_num_threads(),
            "processes": parallel.size(),
            "seconds": round(progress.seconds, 1),
            "steps": progress.step,
            "tokens": progress.tokens,
            "parameters": parameters(self.decoder),
            "bytes": sum(f.stat().st_size for f in self.out.iterdir() if f.is_file()),
            "held_out_bits_per_byte": {
                "as_trained": trained,
                "as_saved": at_length[""],
                f"as_saved_at_{context}_tokens": at_context[""],
            },
            "text": self.text,
            "settings": asdict(self.settings),
            "curve": progress.curve,
        }


def _check_folder(out: Path) -> None:
    """Raise OssiaError for a folder in use, or one that the checkpoint could not replace."""
    if (out / "training" / "run.json").exists():
        raise OssiaError(f"{out} holds an unfinished run; continue it with --resume")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OssiaError(f"--out {out}: exists and is not an empty folder")
    parent = out.resolve().parent
    if out.exists() and (os.path.ismount(out) or not os.access(parent, os.W_OK)):
        # `checkpoint.save` would say so too, after the training.
        raise OssiaError(f"--out {out}: cannot be replaced; give a new folder inside it")


def _prepare(settings: Settings) -> Callable[[Path], None]:
    """Read and check everything; what it returns writes a run into a new folder."""
    corpus = data.read(settings.data)
    vocabulary = tokenizer.learn((d.text for d in corpus.train), settings.vocab_size)
    config = presets.architecture(settings.config, vocabulary)
    longest = max(settings.length, settings.long_length)
    if longest > config.context_length:
        raise OssiaError(
            f"the model's context is {config.context_length} tokens, too short for {longest}"
        )
    has_experts = any(isinstance(layer.feedforward, MoEConfig) for layer in config.layers)
    if settings.mxfp4_steps and not (has_experts and settings.experts == ExpertFormat.MXFP4):
        raise OssiaError("--mxfp4-steps needs a model with experts, saved as mxfp4")
    if settings.expert_parallel and not has_experts:
        raise OssiaError("--expert-parallel needs a model with experts")
    if has_experts and settings.experts == ExpertFormat.MXFP4:
        # An error now, not after hours.
        families.to_hf(with_expert_format(config, ExpertFormat.MXFP4))

    def write(out: Path) -> None:
        folder = out / "training"
        folder.mkdir(parents=True)
        tokenizer.write(vocabulary, out, config.context_length)
        described = {
            "settings": asdict(settings),
            "config": families.to_hf(config),
            "text": texts.write(folder, corpus, vocabulary, _MOST_HELD_OUT_BYTES),
        }
        train, _ = texts.read(folder, described["text"])
        shards.Batches(train, settings.batch_size, longest, settings.seed)  # refuses too little
        _write_json(folder / "run.json", described)  # last: a folder without it is no run

    return write


def parameters(decoder: Decoder) -> dict[str, int]:
    """All parameters, and those that one token passes through: of experts only the chosen."""
    total = sum(p.numel() for p in decoder.parameters())
    idle = 0
    for i, layer in enumerate(decoder.config.layers):
        moe = layer.feedforward
        if isinstance(moe, MoEConfig):
            module = decoder.get_submodule(f"layers.{i}.feedforward")
            router = module.get_submodule("router")
            experts = sum(p.numel() for p in module.parameters())
            experts -= sum(p.numel() for p in router.parameters())
            idle += experts // moe.num_experts * (moe.num_experts - moe.experts_per_token)
    return {"total": total, "active": total - idle}


def command(settings: Settings, out: Path) -> str:
    """The `ossia train` that repeats the run: every setting that is not the default."""
    words = ["ossia", "train"]
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value is True:
            words.append(option(field.name))
        elif value != field.default:
            words += [option(field.name), str(value)]
    return shlex.join([*words, "--out", out.name])


def _generation_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "bos_token_id": config.bos_id,
        "eos_token_id": list(config.eos_ids),
        "pad_token_id": config.pad_id,
        "do_sample": True,
        "temperature": _TEMPERATURE,
    }


def _write_json(file: Path, value: Any) -> None:
    shards.write_bytes(file, (json.dumps(value, indent=1) + "\n").encode())


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """What the system refuses becomes an OssiaError that names the run's folder."""
    try:
        yield
    except OSError as error:
        raise OssiaError(f"cannot write to {out}: {error.strerror or error}") from error


@contextmanager
def _removed_on_failure(out: Path) -> Iterator[None]:
    """`out`, absent or empty before, is so again if the block does not end well."""
    existed = out.exists()
    try:
        yield
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        if existed:
            out.mkdir(exist_ok=True)
        raise
