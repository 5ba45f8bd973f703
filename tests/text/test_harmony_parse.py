"""Token by token, StreamParser has openai_harmony's states, messages and errors."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.text.chat import Role
from ossia.text.harmony.grammar import HarmonyError
from ossia.text.harmony.parse import StreamParser, parse
from tests.text.harmony_reference import to_message


def test_every_golden_completion_token_by_token(gpt_oss_tokenizer, golden):
    cases = golden("harmony_parse")["cases"]
    assert len(cases) == 21
    for case in cases:
        parser = StreamParser(
            gpt_oss_tokenizer, case["role"] and Role(case["role"]), strict=case["strict"]
        )
        stream, error = [], None
        try:
            for id in case["ids"]:
                parser.push(id)
                stream.append(state_of(parser))
            parser.finish()
        except HarmonyError as failure:
            error = str(failure)
        assert stream == case["stream"], case["name"]
        assert error == case.get("error"), case["name"]
        if error is None:
            assert parser.messages == [to_message(item) for item in case["messages"]], case["name"]


def state_of(parser: StreamParser) -> list[str | None]:
    return [
        parser.state,
        parser.role,
        parser.channel,
        parser.recipient,
        parser.content_type,
        parser.last_content_delta,
    ]


PIECES = [
    *("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"),
    *("<|constrain|>", "assistant", "user", "tool", "analysis", "commentary", "final"),
    *(" to=functions.f", " to=", "functions.f", "wizard", "json", " json", " ", "\n", "Hi 世🚀"),
]


@settings(max_examples=400)
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=14),
    role=st.sampled_from([None, Role.ASSISTANT, Role.USER]),
    strict=st.booleans(),
)
def test_any_tokens_go_through_the_reference_s_states(
    reference, gpt_oss_tokenizer, pieces, role, strict
):
    import openai_harmony as harmony

    theirs = harmony.StreamableParser(reference, role and harmony.Role(role), strict=strict)
    ours = StreamParser(gpt_oss_tokenizer, role, strict=strict)
    for id in gpt_oss_tokenizer.encode_control("".join(pieces)):
        failed = []
        for step in (theirs.process, ours.push):
            try:
                step(id)
            except (harmony.HarmonyError, HarmonyError):
                failed.append(step)
        assert len(failed) in (0, 2)
        if failed:
            return
        recipient, content_type = lone_constraint(
            theirs.current_recipient, theirs.current_content_type
        )
        assert state_of(ours) == [
            theirs.state.value,
            theirs.current_role and theirs.current_role.value,
            theirs.current_channel,
            recipient,
            content_type,
            theirs.last_content_delta,
        ]
    expected = [to_message(message.to_dict()) for message in theirs.messages]
    for n, message in enumerate(expected):
        recipient, content_type = lone_constraint(message.recipient, message.content_type)
        expected[n] = replace(message, recipient=recipient, content_type=content_type)
    assert ours.messages == expected


def lone_constraint(recipient, content_type):
    """openai_harmony 0.0.8 takes a lone `<|constrain|>json` for a recipient; later ones do not."""
    if recipient and recipient.startswith("<|constrain|>") and content_type is None:
        return None, recipient
    return recipient, content_type


def test_half_a_character_at_the_end_is_a_replacement_character(gpt_oss_tokenizer):
    ids = gpt_oss_tokenizer.encode_control("<|channel|>final<|message|>ok 🫠")[:-1]
    (message,) = parse(ids, gpt_oss_tokenizer, Role.ASSISTANT)
    assert message.content == ("ok \ufffd",)
