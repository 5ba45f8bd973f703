"""lm-eval with a model of each family: ossia's results are those of lm-eval's own `hf`."""

# pyright: reportMissingImports=false
# (lm_eval is an extra.)

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import GPT2Config, GptOssConfig, Qwen3Config, Qwen3MoeConfig

from tests.scripted import CONTROL, VOCAB_SIZE, write_byte_tokenizer

lm_eval = pytest.importorskip("lm_eval", reason="make evaluations runs these")

CONTEXT = 320
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "num_hidden_layers": 2,
    "max_position_embeddings": CONTEXT,
}
ATTENTION: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
FAMILIES = {
    "gpt2": GPT2Config(vocab_size=VOCAB_SIZE, n_embd=32, n_head=4, n_layer=2, n_positions=CONTEXT),
    "qwen3": Qwen3Config(**COMMON, **ATTENTION, intermediate_size=48),
    "qwen3_moe": Qwen3MoeConfig(
        **COMMON, **ATTENTION, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2
    ),
    "gpt_oss": GptOssConfig(
        **COMMON,
        **ATTENTION,
        intermediate_size=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=16,
        rope_parameters={"rope_type": "default", "rope_theta": 150000.0},
    ),
}
TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_target": "{{right}}",
        "doc_to_choice": "{{options}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "num_fewshot": 2,
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "generate": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_target": "{{options[0]}}",
        "generation_kwargs": {"until": ["\n", "Q:"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, large enough for its greedy texts to be clear choices."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[request.param])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.float().save_pretrained(folder)
    control = CONTROL if request.param == "gpt_oss" else CHATML
    write_byte_tokenizer(folder, control)
    end_name = "<|im_end|>" if request.param.startswith("qwen3") else "<|endoftext|>"
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end_name,
        "bos_token": "<|endoftext|>",
        "model_max_length": CONTEXT,
    }
    if request.param.startswith("qwen3"):
        settings["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    end = 256 + control.index(end_name)
    generation = {"eos_token_id": end, "pad_token_id": end}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    config = json.loads((folder / "config.json").read_text())
    config |= {"eos_token_id": end, "bos_token_id": end}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local tasks over a local file."""
    folder, draw = tmp_path_factory.mktemp("tasks"), random.Random(0)
    words = ["the", "cat", "sat", "on", "mats", "while", "rain", "fell", "over", "quiet", "hills"]

    def some(least: int, most: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(least, most)))

    rows = [
        {
            "question": f"Q: {some(3, 9)}?",
            "options": [f" {some(1, 4)}" for _ in range(4)],
            "right": draw.randrange(4),
            "text": some(5, 160),
        }
        for _ in range(12)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in TASKS.items():
        task = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
            "test_split": "test",
            "fewshot_split": "test",
            **task,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    return folder


def evaluate(model: str, checkpoint: Path, tasks: Path, **options: Any) -> Any:
    from lm_eval.tasks import TaskManager

    import ossia.eval.harness  # noqa: F401 - registers, where lm_eval looks for no entry points

    window = CONTEXT - 1  # of both; hf's own default scores one token more in longer texts
    return lm_eval.simple_evaluate(
        model=model,
        model_args=f"pretrained={checkpoint},dtype=float32,max_length={window}",
        tasks=[f"local_{name}" for name in TASKS],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
        log_samples=True,
        **options,
    )


def responses(found: Any, name: str) -> list[Any]:
    samples = sorted(found["samples"][f"local_{name}"], key=lambda sample: sample["doc_id"])
    return [sample["resps"] for sample in samples]


def flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


def assert_equal(ours: Any, theirs: Any) -> None:
    for name in ("choice", "rolling"):
        pairs = zip(flat(responses(ours, name)), flat(responses(theirs, name)), strict=True)
        for a, b in pairs:
            if isinstance(b, float):
                assert a == pytest.approx(b, rel=1e-5, abs=1e-4)
            else:
                assert a == b  # whether it is greedy
    assert responses(ours, "generate") == responses(theirs, "generate")
    for task, metrics in theirs["results"].items():
        for metric, value in metrics.items():
            if isinstance(value, float):
                assert ours["results"][task][metric] == pytest.approx(value, rel=1e-4)


def test_results_are_those_of_hf(checkpoint: Path, tasks: Path) -> None:
    ours, theirs = (evaluate(model, checkpoint, tasks) for model in ("ossia", "hf"))
    assert_equal(ours, theirs)
    lengths = [len(text) for text in flat(responses(theirs, "generate"))]
    assert max(lengths) > 0
    texts = [json.loads(line)["text"] for line in (tasks / "rows.jsonl").read_text().splitlines()]
    assert max(map(len, texts)) > CONTEXT  # a byte is a token: some take several windows


def test_chat_templates_are_applied_as_hf_applies_them(checkpoint: Path, tasks: Path) -> None:
    if not checkpoint.name.startswith("qwen3"):
        pytest.skip("the tiny model has no chat template of transformers")
    chat: dict[str, Any] = {"apply_chat_template": True, "fewshot_as_multiturn": True}
    ours, theirs = (evaluate(model, checkpoint, tasks, **chat) for model in ("ossia", "hf"))
    assert_equal(ours, theirs)


def test_the_packaged_model_answers_without_its_reasoning() -> None:
    from lm_eval.api.instance import Instance

    from ossia.eval.harness import OssiaLM

    model = OssiaLM(reasoning_effort="medium")
    for question, answer in (("What is 7 * 8?", "7 * 8 = 56."), ("Spell cat.", "c-a-t")):
        prompt = model.apply_chat_template([{"role": "user", "content": question}])
        arguments = (prompt, {"until": ["\n"], "max_gen_toks": 200})
        request = Instance("generate_until", {}, arguments, 0)
        assert model.generate_until([request], disable_tqdm=True) == [answer]
    begun = [{"role": "user", "content": "Spell cat."}, {"role": "assistant", "content": "c-"}]
    prompt = model.apply_chat_template(begun, add_generation_prompt=False)
    assert prompt.endswith("<|start|>assistant<|channel|>final<|message|>c-")


def test_the_command_runs_a_task(checkpoint: Path, tasks: Path, tmp_path: Path) -> None:
    if checkpoint.name.startswith("qwen3"):
        pytest.skip("two families are enough")
    arguments = ["--model", "ossia", "--model_args", f"pretrained={checkpoint}", "--limit", "2"]
    arguments += ["--tasks", "local_rolling", "--include_path", str(tasks)]
    arguments += ["--output_path", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-P", "-m", "ossia.eval", *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()[-2000:]
    [found] = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(found.read_text())["results"]["local_rolling"]
    assert results["bits_per_byte,none"] > 0


def test_lm_eval_finds_it_by_its_entry_point() -> None:
    found = [each for each in entry_points(group="lm_eval.models") if each.name == "ossia"]
    if not found:
        pytest.skip("ossia was installed before it had entry points")
    assert found[0].value == "ossia.eval.harness:OssiaLM"
