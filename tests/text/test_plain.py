"""Models without roles continue the text of the conversation."""

import pytest

from ossia.errors import OssiaError
from ossia.text import Chat, load_format
from ossia.text.plain import PlainFormat
from tests.text.replies import read, read_text


@pytest.fixture(scope="module")
def gpt2(gpt2_folder, gpt2_tokenizer):
    return load_format(gpt2_folder, gpt2_tokenizer)


def test_gpt2_has_no_chat_format(gpt2):
    assert isinstance(gpt2, PlainFormat)
    assert gpt2.stop_ids == {50256}


def test_a_reply_continues_and_a_new_message_begins_a_line(gpt2, gpt2_tokenizer):
    messages = [
        {"role": "user", "content": "The quick brown"},
        {"role": "assistant", "content": " fox."},
        {"role": "user", "content": "Then"},
        {"role": "assistant", "content": " it slept.\n"},
        {"role": "user", "content": "And"},
    ]
    text = gpt2_tokenizer.decode(gpt2.render(Chat.of(messages)))
    assert text == "The quick brown fox.\nThen it slept.\nAnd"


def test_a_user_s_end_of_text_is_text(gpt2, gpt2_tokenizer):
    ids = gpt2.render(Chat.of([{"role": "user", "content": "a<|endoftext|>b"}]))
    assert ids == gpt2_tokenizer.encode("a<|endoftext|>b")
    assert 50256 not in ids


def test_every_token_of_the_reply_is_answer(gpt2, gpt2_tokenizer):
    assert read_text(gpt2.parser(), gpt2_tokenizer, "Hi 🚀<|endoftext|>") == [("final", "Hi 🚀")]
    half = gpt2_tokenizer.encode("🚀")[:-1]
    assert read(gpt2.parser(), half) == [("final", "\ufffd")]


def test_tools_are_refused(gpt2):
    with pytest.raises(OssiaError, match="no chat format"):
        gpt2.render(Chat.of([], tools=[{"type": "function", "function": {"name": "f"}}]))
