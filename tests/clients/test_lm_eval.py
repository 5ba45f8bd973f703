"""lm-eval: likelihoods through local-completions, texts through local-chat-completions, of tasks
whose data lie here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import PYTHON, ROOT, Server, stdlib_server
from tests.clients.scripts import ANSWER, final

PROGRAM = Path(sys.executable).with_name("lm_eval")
MODEL = ROOT / "ossia" / "models" / "ossia-stdlib"

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="it is not installed: make clients")

CHOICES = """
task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
TEXTS = """
task: texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 200}}
metric_list: [{{metric: exact_match}}]
"""
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: word_perplexity}}]
"""
QUESTIONS = [
    {"question": "import os\nfor name in os.", "choices": ["listdir", "xylophone"], "label": 0},
    {"question": "The capital of Norway is", "choices": [" Oslo", " Østersund", " 7"], "label": 0},
    {"question": "a b c d a b c d a b c", "choices": [" d", " é 漢"], "label": 0},
]

# By LLM.logprobs, of each answer to a context: its log-likelihood, and whether it is the likeliest.
EXPECTED = """
import json, sys
import ossia
with ossia.LLM(dtype="float32") as llm:
    encode = llm.tokenizer.encode
    begin = llm.tokenizer.encode_control("<|startoftext|>")
    starts, wholes = [], []
    for context, answer in json.load(sys.stdin):
        starts.append(len(encode(context)) or len(begin))
        wholes.append(([] if context else begin) + encode(context + answer))
    scored = llm.logprobs(wholes, start=starts, top=1)
    print(json.dumps([
        (sum(token.logprob for token in tokens), all(t.top[0][0] == t.token for t in tokens))
        for tokens in scored
    ]))
"""


def evaluate(
    folder: Path,
    task: str,
    rows: list[dict[str, Any]],
    kind: str,
    batch: int = 1,
    **arguments: Any,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The results and the samples of a task over these rows, by the command line."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text(task.format(data=data))
    name = task.split()[1]
    command = [str(PROGRAM), "run", "--model", kind, "--tasks", name, "--log_samples"]
    command += ["--include_path", str(folder), "--output_path", str(folder / "out")]
    command += ["--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())]
    command += ["--batch_size", str(batch)]
    if "chat" in kind:
        command.append("--apply_chat_template")
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        command, env=os.environ | offline, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (folder / "out").rglob("results_*.json")
    (samples,) = (folder / "out").rglob(f"samples_{name}_*.jsonl")
    found = json.loads(results.read_text())["results"][name]
    return found, [json.loads(line) for line in samples.read_text().splitlines()]


@pytest.fixture(scope="module")
def precise() -> Iterator[Server]:
    """In bfloat16, a text's likelihood depends a little on what is computed beside it."""
    with stdlib_server("--dtype", "float32") as server:
        yield server


def expected(pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    done = subprocess.run(
        [PYTHON, "-c", EXPECTED], input=json.dumps(pairs), capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return [(score, greedy) for score, greedy in json.loads(done.stdout)]


def test_likelihoods_of_answers_are_the_model_s_own(precise, tmp_path):
    results, samples = evaluate(
        tmp_path,
        CHOICES,
        QUESTIONS,
        "local-completions",
        model=precise.model,
        base_url=f"{precise.url}/completions",
        tokenizer=MODEL,
        num_concurrent=2,
        batch=3,
    )
    pairs, found = [], []
    for sample in samples:
        for choice, ((score, greedy),) in zip(
            sample["doc"]["choices"], sample["resps"], strict=True
        ):
            pairs.append((sample["doc"]["question"], choice))
            found.append((float(score), str(greedy) == "True"))
    assert len(found) == 7
    for (score, greedy), (own, likeliest) in zip(found, expected(pairs), strict=True):
        assert score == pytest.approx(own, abs=1e-3)
        assert greedy == likeliest
    assert any(greedy for _, greedy in found)
    assert not all(greedy for _, greedy in found)
    assert results["acc,none"] > 0.5


def test_the_likelihood_of_a_whole_text(precise, tmp_path):
    text = "import json\nvalue = json.loads(text)\n"
    _, (sample,) = evaluate(
        tmp_path,
        ROLLING,
        [{"question": text}],
        "local-completions",
        model=precise.model,
        base_url=f"{precise.url}/completions",
        tokenizer=MODEL,
    )
    ((own, _),) = expected([("", text)])
    assert float(sample["resps"][0][0]) == pytest.approx(own, abs=1e-3)


def test_texts_of_a_chat(scripted, tmp_path):
    scripted(ANSWER, final("Oslo\nis it."))
    rows = [
        {"question": "What is 6 * 7?", "answer": "Forty-two, é!"},
        {"question": "The capital of Norway?", "answer": "Bergen"},
    ]
    results, samples = evaluate(
        tmp_path,
        TEXTS,
        rows,
        "local-chat-completions",
        model=scripted.model,
        base_url=f"{scripted.url}/chat/completions",
    )
    assert results["exact_match,none"] == 0.5
    assert [sample["resps"] for sample in samples] == [[["Forty-two, é!"]], [["Oslo"]]]
    first, second = scripted.prompts
    assert "What is 6 * 7?" in first
    assert "The capital of Norway?" in second
