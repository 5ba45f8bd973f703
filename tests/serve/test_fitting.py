"""`truncation: "auto"`: the oldest turns go first, and nothing is torn apart."""

from __future__ import annotations

import pytest

from tests.serve.conftest import ANSWER, Served, openai

pytest.importorskip("fastapi")

from ossia.serve.responses.fitting import droppable, fitted

TOOLS = [{"type": "function", "name": "look", "parameters": None}]


def says(role: str, text: str, *calls: str) -> dict:
    message = {"role": role, "content": text}
    return message | ({"tool_calls": [{"id": call} for call in calls]} if calls else {})


def result(call: str) -> dict:
    return {"role": "tool", "tool_call_id": call, "content": call}


CONVERSATION = [
    says("system", "rules"),  # 0
    says("user", "one"),
    says("assistant", "", "a"),
    result("a"),
    says("assistant", "first"),
    says("developer", "more rules"),  # 5
    says("user", "two"),
    says("assistant", "second"),
    says("user", "three"),  # 8: the last question
    says("assistant", "", "b", "c"),
    result("b"),
    result("c"),
    says("assistant", "", "d"),
    result("d"),
]


def test_turns_go_before_calls_and_a_call_goes_with_its_results():
    assert droppable(CONVERSATION) == [[1, 2, 3, 4], [6, 7], [9, 10, 11]]


def test_a_result_goes_with_its_call_wherever_it_stands():
    late = [says("user", "one"), says("assistant", "", "a"), says("user", "two"), result("a")]
    assert droppable(late) == [[0, 1, 3]]


def test_a_conversation_without_a_question_keeps_its_newest_part():
    said = [says("assistant", "one"), says("assistant", "two")]
    assert droppable(said) == [[0]]
    assert droppable([says("system", "rules")]) == []


@pytest.mark.parametrize("most", range(3, 15))
def test_as_little_goes_as_will_do(most):
    kept = fitted(CONVERSATION, list, lambda said: len(said) <= most)
    sizes = [14, 10, 8, 5]
    assert len(kept) == next((size for size in sizes if size <= most), 5)
    for message in kept:
        assert message in CONVERSATION
    assert [m["content"] for m in kept if m["role"] in ("system", "developer")] == [
        "rules",
        "more rules",
    ]


def create(served: Served, **options):
    return served.client.responses.create(**{"model": "tiny", "truncation": "auto", **options})


def test_a_long_conversation_is_answered(serve):
    served = serve(*[ANSWER] * 3)
    turns = [
        {"role": role, "content": f"{role} {n} " + "x" * 300}
        for n in range(10)
        for role in ("user", "assistant")
    ]
    rules = {"role": "system", "content": "Rules."}
    question = {"role": "user", "content": "And now?"}
    said = [rules, *turns, question]
    with pytest.raises(openai.BadRequestError, match="context of 4,096"):
        create(served, input=said, truncation="disabled")
    create(served, input=said, instructions="Instructions.")
    assert len(served.engine.requests[-1].prompt) <= 4096 * 3 // 4
    for part in ("Rules.", "Instructions.", "And now?", "assistant 9", "user 9"):
        assert part in served.prompt()
    for part in ("user 0", "assistant 0"):
        assert part not in served.prompt()
    kept = {n for n in range(10) if f"user {n}" in served.prompt()}
    assert kept == {n for n in range(10) if f"assistant {n}" in served.prompt()}
    create(served, input=said, max_output_tokens=3000)
    assert len(served.engine.requests[-1].prompt) <= 2048  # a reply gets half at the most
    create(served, input=said, max_output_tokens=10)
    assert len({n for n in range(10) if f"user {n}" in served.prompt()}) > len(kept)


def test_what_is_far_too_long_goes_too(serve):
    served = serve(ANSWER)
    pasted = [{"role": "user", "content": "x" * 200_000}, {"role": "assistant", "content": "Hm."}]
    create(served, input=[*pasted, {"role": "user", "content": "And now?"}])
    assert "And now?" in served.prompt()
    assert "Hm." not in served.prompt()


def test_a_long_turn_of_calls_loses_the_oldest(serve):
    served = serve(ANSWER)
    calls = [
        item
        for n in range(20)
        for item in (
            {"type": "function_call", "call_id": f"c{n}", "name": "look", "arguments": f"[{n}]"},
            {"type": "function_call_output", "call_id": f"c{n}", "output": f"<{n}>" + "x" * 300},
        )
    ]
    create(served, input=[{"role": "user", "content": "Go on."}, *calls], tools=TOOLS)
    assert "Go on." in served.prompt()
    assert "<19>" in served.prompt()
    assert "<0>" not in served.prompt()
    for n in range(20):
        assert (f"[{n}]" in served.prompt()) == (f"<{n}>" in served.prompt())


def test_a_question_that_is_too_long_by_itself_is_refused(serve):
    served = serve()
    with pytest.raises(openai.BadRequestError, match="context of 4,096"):
        create(served, input="x" * 5000)
