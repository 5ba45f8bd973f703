"""The evaluations that gpt-oss was published with, over Responses and over Chat Completions."""

from __future__ import annotations

import pytest

from tests.clients.scripts import final

aime = pytest.importorskip("gpt_oss.evals.aime_eval")
basic = pytest.importorskip("gpt_oss.evals.basic_eval")
chat = pytest.importorskip("gpt_oss.evals.chat_completions_sampler")
gpqa = pytest.importorskip("gpt_oss.evals.gpqa_eval")
pandas = pytest.importorskip("pandas")
responses = pytest.importorskip("gpt_oss.evals.responses_sampler")

CHOICES = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
MOST = 131_072  # tokens, which its command asks for


@pytest.fixture(params=[responses.ResponsesSampler, chat.ChatCompletionsSampler])
def kind(request, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return request.param


def sampler_of(kind, server):
    """As `python -m gpt_oss.evals --reasoning-effort low` makes it."""
    return kind(
        model=server.model,
        reasoning_model=True,
        reasoning_effort="low",
        temperature=1.0,
        base_url=server.url,
        max_tokens=MOST,
    )


def thought(answer):
    return "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant" + final(answer)


def test_multiple_choice(scripted, kind, monkeypatch):
    rows = [{"Question": f"What is {n}?", **dict.fromkeys(CHOICES, "")} for n in range(4)]
    for n, row in enumerate(rows):
        row |= {name: f"{name} to {n}" for name in CHOICES}
    table = pandas.DataFrame(rows)
    monkeypatch.setattr(pandas, "read_csv", lambda url: table)
    evaluation = gpqa.GPQAEval(n_repeats=1)
    right = ["ABCD"[example["permutation"].index(0)] for example in evaluation.examples]
    wrong = "ABCD"[evaluation.examples[3]["permutation"].index(1)]
    scripted(*(thought(f"**Answer:** {letter}") for letter in (*right[:3], wrong)))
    result = evaluation(sampler_of(kind, scripted))
    assert result.score == 0.75
    prompts = scripted.prompts
    assert all("Reasoning: low" in prompt for prompt in prompts)
    assert [f"What is {n}?" in prompt for n, prompt in enumerate(prompts)] == [True] * 4


def test_competition_mathematics(scripted, kind, monkeypatch):
    tables = [
        pandas.DataFrame([{"question": "What is 6 * 7?", "answer": "42"}]),
        pandas.DataFrame([{"question": "What is 6 * 8?", "answer": "48"}]),
    ]
    monkeypatch.setattr(pandas, "read_json", lambda url, lines: tables[url.endswith("II.jsonl")])
    scripted(thought(r"So \boxed{42}."), thought("So 47."))
    result = aime.AIME25Eval(n_repeats=1)(sampler_of(kind, scripted))
    assert result.score == 0.5
    assert "What is 6 * 8?" in scripted.prompts[1]


def test_the_model_in_the_package(stdlib, kind):
    result = basic.BasicEval()(sampler_of(kind, stdlib))
    assert result.score == 1.0  # it says something
    assert result.metrics["chars"] == len(result.convos[0][-1]["content"])
