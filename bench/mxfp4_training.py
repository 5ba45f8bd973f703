"""The loss by rounding experts to MXFP4, for models trained without and with the rounding
(--mxfp4-steps).

    python bench/mxfp4_training.py --seeds 2 > result.json

Small models of gpt-oss's architecture are trained on the source of some packages of the standard
library, then taught sums by full fine-tuning and by LoRA, each with and without the rounding. The
held-out loss is measured as trained and of the saved 4-bit checkpoint, in bits per byte and in nats
per trained token. It takes some minutes on one core. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import torch

from ossia import families
from ossia.train.runs.finetune import FineTuning
from ossia.train.runs.folder import FolderRun
from ossia.train.runs.presets import GptOssSizes, gpt_oss
from ossia.train.runs.pretrain import Run
from ossia.train.settings import FineTuneSettings, Settings, Training

STEPS, AWARE = 500, 100  # of training on text, and those with rounding
PACKAGES = ("asyncio", "email", "json", "logging", "unittest")
TAUGHT = 100  # of fine-tuning; the last quarter, or all, with rounding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    seeds = parser.parse_args().seeds
    if seeds < 1:
        parser.error("--seeds must be at least 1")
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config, chats = folder / "config.json", folder / "chats.jsonl"
        config.write_text(json.dumps(tiny()))
        chats.write_text("\n".join(map(json.dumps, sums(1000))))
        source = copied_source(folder / "source")
        for seed in range(seeds):
            for aware in (0, AWARE):
                out = folder / f"text-{seed}-{aware}"
                record = trained(Run, text_settings(source, config, seed, aware), out)
                loss = record["held_out_bits_per_byte"]
                results.append(row("text", "bits per byte", seed, aware, loss))
            for lora in (False, True):
                for aware in (0, TAUGHT // 4, TAUGHT):
                    settings = chat_settings(out, chats, seed, aware, lora)
                    record = trained(FineTuning, settings, folder / f"{lora}-{seed}-{aware}")
                    kind, loss = "LoRA" if lora else "full", record["held_out_loss"]
                    results.append(row(kind, "nats per token", seed, aware, loss))
    print(json.dumps({"torch": torch.__version__, "results": results}))


def tiny() -> dict[str, Any]:
    sizes = {"hidden": 64, "layers": 4, "intermediate": 64, "experts": 8, "chosen": 2}
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "window": 64}
    shape = GptOssSizes(**sizes, **heads, context=1024, original_context=256)
    return families.to_hf(gpt_oss(shape))


def copied_source(folder: Path) -> Path:
    folder.mkdir()
    library = Path(sysconfig.get_path("stdlib"))
    for package in PACKAGES:
        for file in (library / package).glob("*.py"):
            (folder / f"{package}-{file.name}").write_bytes(file.read_bytes())
    return folder


def text_settings(source: Path, config: Path, seed: int, aware: int) -> Settings:
    return Settings(
        data=str(source),
        config=str(config),
        vocab_size=1024,
        steps=STEPS,
        batch_size=8,
        length=128,
        learning_rate=4e-3,
        warmup=100,
        mxfp4_steps=aware,
        seed=seed,
        eval_every=STEPS,
        save_every=STEPS,
    )


def chat_settings(model: Path, chats: Path, seed: int, aware: int, lora: bool) -> FineTuneSettings:
    return FineTuneSettings(
        model=str(model),
        data=str(chats),
        steps=TAUGHT,
        batch_size=4,
        length=512,
        date="2026-01-02",
        learning_rate=3e-3 if lora else 1e-3,
        lora=lora,
        merge=lora,
        mxfp4_steps=aware,
        seed=seed,
        eval_every=TAUGHT,
        save_every=TAUGHT,
    )


def sums(count: int) -> list[dict[str, Any]]:
    """Questions and answers from a fixed seed."""
    numbers = random.Random(0)
    made = []
    for _ in range(count):
        a, b = numbers.randrange(100), numbers.randrange(100)
        question = {"role": "user", "content": f"What is {a} + {b}?"}
        answer = {"role": "assistant", "reasoning": f"{a} + {b} = {a + b}", "content": f"{a + b}."}
        made.append({"messages": [question, answer], "reasoning_effort": "low"})
    return made


def trained(kind: type[FolderRun], settings: Training, out: Path) -> dict[str, Any]:
    run = kind.start(settings, out)
    run.train()
    return run.export()


def row(training: str, unit: str, seed: int, aware: int, loss: dict[str, float]) -> dict[str, Any]:
    result = {"training": training, "seed": seed, "mxfp4_steps": aware, "unit": unit}
    result |= {name: loss[name] for name in ("before", "as_trained", "as_saved") if name in loss}
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


if __name__ == "__main__":
    main()
