"""`python -m bench.lm_eval_speed`: lm-eval with ossia beside its own `hf`, on one multiple-choice
task with five examples before each question; weights and questions are random.

It needs lm-eval (`make evaluations` sets up an environment with it).
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import string
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GPT2Config, Qwen3Config

from tests.scripted import write_byte_tokenizer

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB = 256 + len(CONTROL)
QUESTIONS, EXAMPLES, OPTIONS = 10, 5, 4
MODELS = {
    "GPT-2 small": GPT2Config(vocab_size=VOCAB, n_positions=1024),
    "Qwen3-0.6B, 2 of 28 layers": Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=2048,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="times to measure; the least counts")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    if asked.turns < 1:
        parser.error("--turns must be at least 1")
    if importlib.util.find_spec("lm_eval") is None:
        parser.error("lm-eval is not installed: make evaluations sets up an environment with it")
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_task(folder / "task")
        for title, config in MODELS.items():
            model = folder / title.replace(" ", "-").replace(",", "")
            write_model(model, config)
            seconds, accuracy = {}, {}
            for _ in range(asked.turns):
                for kind in ("ossia", "hf"):
                    took, result = measure(kind, model, folder / "task")
                    seconds[kind] = min(took, seconds.get(kind, took))
                    accuracy[kind] = result
            ratio = seconds["hf"] / seconds["ossia"]
            print(
                f"{title}: ossia {seconds['ossia']:.1f} s, hf {seconds['hf']:.1f} s, "
                f"{ratio:.1f} times as fast; accuracy {accuracy}",
                flush=True,
            )


def write_model(folder: Path, config: Any) -> None:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    write_byte_tokenizer(folder, CONTROL)
    names = {"eos_token": CONTROL[0], "bos_token": CONTROL[0]}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_task(folder: Path) -> None:
    folder.mkdir()
    draw = random.Random(0)

    def some(length: int) -> str:
        return "".join(draw.choices(string.ascii_lowercase + "   ", k=length))

    rows = [
        {
            "question": some(90),
            "options": [" " + some(12) for _ in range(OPTIONS)],
            "right": draw.randrange(OPTIONS),
        }
        for _ in range(QUESTIONS + EXAMPLES)
    ]
    for split, part in (("test", rows[:QUESTIONS]), ("examples", rows[QUESTIONS:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    files = {split: str(folder / f"{split}.jsonl") for split in ("test", "examples")}
    task = {
        "task": "random_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "fewshot_split": "examples",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": EXAMPLES,
        "output_type": "multiple_choice",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_target": "{{right}}",
        "doc_to_choice": "{{options}}",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "task.yaml").write_text(json.dumps(task))


def measure(kind: str, model: Path, task: Path) -> tuple[float, float]:
    """Seconds of the evaluation, without loading the model, and its accuracy."""
    import lm_eval
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    import ossia.eval.harness  # noqa: F401 - registers

    arguments = {"pretrained": str(model), "dtype": "float32", "batch_size": 8}
    loaded = get_model(kind)(**arguments, **({"device": "cpu"} if kind == "hf" else {}))
    manager = TaskManager(include_path=str(task), include_defaults=False)
    start = time.perf_counter()
    found = lm_eval.simple_evaluate(
        model=loaded, tasks=["random_choice"], task_manager=manager, bootstrap_iters=0
    )
    assert found is not None
    return time.perf_counter() - start, found["results"]["random_choice"]["acc,none"]


if __name__ == "__main__":
    main()
