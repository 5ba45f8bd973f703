"""What the grammar lets follow is what openai_harmony reads, and all readers read it alike."""

from hypothesis import given
from hypothesis import strategies as st

from ossia.text.chat import Role
from ossia.text.harmony.grammar import (
    CHANNELS,
    MARKS,
    NEXT,
    ControlToken,
    HarmonyError,
    Header,
    Part,
    State,
    find_header,
    following,
    read_header,
    write_header,
)

names = st.from_regex(r"(functions\.)?[a-z_]{1,6}", fullmatch=True)
VALUES = {
    Part.AUTHOR: st.just(str(Role.ASSISTANT)),
    Part.RECIPIENT: names,
    Part.CHANNEL: st.sampled_from(list(CHANNELS)),
    Part.CONTENT_TYPE: st.sampled_from(["json", "code"]),
}


@st.composite
def walks(draw) -> list[tuple[Part, str]]:
    """The parts of a header, each one that may follow those before it."""
    walk: list[tuple[Part, str]] = []
    for _ in range(draw(st.integers(1, len(Part)))):
        open_parts = following([part for part, _ in walk])
        if not open_parts:
            break
        part = draw(st.sampled_from(open_parts))
        walk.append((part, draw(VALUES[part])))
    return walk


def written(walk: list[tuple[Part, str]]) -> str:
    return "".join("".join(MARKS[part]) + value for part, value in walk)


def theirs(reference, tokenizer, text: str) -> Header | None:
    """openai_harmony's reading of a header; None if it refuses it."""
    import openai_harmony as harmony

    parser = harmony.StreamableParser(reference, None)
    try:
        for id in tokenizer.encode_control(f"<|start|>{text}<|message|>"):
            parser.process(id)
    except harmony.HarmonyError:
        return None
    recipient, content_type = parser.current_recipient, parser.current_content_type
    if recipient and recipient.startswith("<|constrain|>") and content_type is None:
        recipient, content_type = None, recipient  # a slip of openai_harmony 0.0.8
    assert parser.current_role is not None
    role = Role(parser.current_role.value)
    return Header(role, None, parser.current_channel, recipient, content_type)


@given(walk=walks())
def test_what_may_follow_is_a_header_that_every_reader_reads(reference, gpt_oss_tokenizer, walk):
    said = dict(walk)
    content_type = said.get(Part.CONTENT_TYPE)
    header = Header(
        Role.ASSISTANT,
        channel=said.get(Part.CHANNEL),
        recipient=said.get(Part.RECIPIENT),
        content_type=content_type and f"<|constrain|>{content_type}",
    )
    text = written(walk)
    assert theirs(reference, gpt_oss_tokenizer, text) == header
    assert read_header(text) == header
    found = find_header(text)
    assert (found.header.channel, found.header.recipient) == (header.channel, header.recipient)


@given(walk=walks(), data=st.data())
def test_what_may_not_follow_is_no_part_of_the_header(reference, gpt_oss_tokenizer, walk, data):
    """A second recipient, or one after the type, is refused; a second channel is none."""
    parts = [part for part, _ in walk]
    part = data.draw(st.sampled_from([p for p in Part if p not in following(parts)]))
    if part in (Part.AUTHOR, Part.CONTENT_TYPE):
        return  # would only lengthen the word before it
    text = written([*walk, (part, data.draw(VALUES[part]))])
    whole = theirs(reference, gpt_oss_tokenizer, text)
    try:
        ours = read_header(text)
    except HarmonyError:
        ours = None
    assert ours == whole
    if part is Part.RECIPIENT:
        assert whole is None
    elif whole is not None:
        assert whole.channel == dict(walk)[Part.CHANNEL]


@given(
    header=st.builds(
        Header,
        st.sampled_from([Role.ASSISTANT, Role.USER, Role.DEVELOPER, Role.SYSTEM]),
        channel=st.none() | st.sampled_from(list(CHANNELS)),
        recipient=st.none() | names,
        content_type=st.none() | st.sampled_from(["<|constrain|>json"]),
    )
)
def test_a_written_header_is_read_back(header):
    first, *pieces, last = write_header(header)
    assert first in NEXT[State.EXPECT_START]
    assert last in NEXT[State.HEADER]
    assert read_header("".join(pieces)) == header


def test_a_model_ends_each_kind_of_message_with_its_own_token():
    def end(**parts) -> str:
        return Header(Role.ASSISTANT, **parts).end

    assert end(channel="analysis") == "<|end|>"
    assert end(channel="commentary") == "<|end|>"
    assert end(channel="commentary", recipient="functions.f") == "<|call|>"
    assert end(channel="final") == "<|return|>"
    assert Header(Role.USER).end == "<|end|>"
    assert set(NEXT[State.CONTENT]) == {ControlToken.END, ControlToken.CALL, ControlToken.RETURN}
