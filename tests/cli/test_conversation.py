"""The conversation behind `ossia chat`: how turns end, what is kept, and what is saved."""

import pytest

from ossia.checkpoint import packaged_model
from ossia.cli.conversation import Conversation
from ossia.errors import OssiaError
from ossia.text import Channel, TextDelta, read_generation_config
from ossia.tools import BUILT_IN
from tests.cli.chats import CALCULATE, converse, final
from tests.scripted import CONTROL, scripted_llm, write_byte_tokenizer


class TestEndings:
    def test_an_interrupted_answer_is_kept_as_far_as_it_came(self, conversation):
        talk, engine = conversation("<|channel|>final<|message|>Hello there<|return|>")
        stream = talk.ask("x")
        for event in stream:
            talk.hear(event)
            if isinstance(event, TextDelta) and event.text.endswith("o"):
                stream.interrupt()
        assert talk.reply_ended() == "(stopped)"
        assert talk.messages[-1] == {"role": "assistant", "content": "Hello"}
        assert not engine.has_work

    def test_a_turn_without_any_answer_is_taken_back(self, conversation):
        talk, _ = conversation("<|channel|>analysis<|message|>Hm")
        stream = talk.ask("x")
        stream.interrupt()
        for event in stream:
            talk.hear(event)
        assert "your turn was removed" in talk.reply_ended()
        assert talk.messages == []

    def test_a_turn_interrupted_after_a_call_is_taken_back_whole(self, conversation):
        talk, _ = conversation(final("Hello."), CALCULATE, "<|channel|>analysis<|message|>Hm")
        converse(talk, "x")
        before = list(talk.messages)
        for event in talk.ask("6 * 7?"):
            talk.hear(event)
        assert talk.run_tools() == ["42"]
        talk.reply_ended()
        stream = talk.go_on()
        assert stream is not None
        stream.interrupt()
        for event in stream:
            talk.hear(event)
        assert "your turn was removed" in talk.reply_ended()
        assert talk.messages == before

    def test_a_model_that_calls_for_ever_is_stopped(self, conversation):
        talk, engine = conversation(*[CALCULATE] * 20)
        with pytest.raises(OssiaError, match="calls without an answer"):
            converse(talk, "x")
        assert len(engine.requests) < 12
        assert talk.messages == []

    def test_an_empty_answer_says_so(self, conversation):
        talk, _ = conversation("<|channel|>final<|message|><|return|>")
        assert converse(talk, "x") == "(an empty answer)"

    def test_a_reply_that_is_cut_off_says_so(self, conversation):
        talk, _ = conversation("<|channel|>final<|message|>Hel")
        assert "cut off after" in converse(talk, "x")

    def test_a_full_context_is_told_to_be_cleared_if_there_is_something_to_clear(
        self, conversation
    ):
        full = "<|channel|>final<|message|>" + "x" * 5000
        talk, _ = conversation(full, "<|channel|>final<|message|>Yes.<|return|>", full)
        assert converse(talk, "x") == "(cut off: the context of 4,096 tokens is full)"
        talk.messages.clear()
        converse(talk, "x")
        assert converse(talk, "y").endswith("is full; /clear starts over)")


def test_saving_leaves_the_old_file_whole_if_it_fails(conversation, tmp_path, monkeypatch):
    talk, _ = conversation()
    path = tmp_path / "talk.json"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OssiaError, match="No space left"):
        talk.save(path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["talk.json"]


def test_preambles_are_part_of_what_is_said(conversation):
    talk, _ = conversation("<|channel|>commentary<|message|>Let me look.<|end|>" + final("Done."))
    stream = talk.ask("x")
    events = list(stream)
    for event in events:
        talk.hear(event)
    talk.reply_ended()
    assert Channel.PREAMBLE in {e.channel for e in events if isinstance(e, TextDelta)}
    assert talk.messages[-1]["content"] == "Let me look.\n\nDone."


END_OF_TEXT, RETURN = (256 + CONTROL.index(name) for name in ("<|endoftext|>", "<|return|>"))


@pytest.mark.parametrize(
    ("control", "settings", "begins"),
    [
        (CONTROL, {}, "harmony chat"),
        (CONTROL, {"eos_token_id": [RETURN, END_OF_TEXT]}, "harmony chat"),
        (CONTROL, {"eos_token_id": END_OF_TEXT}, "a base model, which knows harmony's tokens but"),
        (["<|endoftext|>"], {}, "no chat format"),
        (["<|endoftext|>"], {"eos_token_id": 7}, "no chat format"),
    ],
)
def test_the_title_says_how_the_model_is_talked_to(tmp_path, control, settings, begins):
    llm, _ = scripted_llm(write_byte_tokenizer(tmp_path, control), [], **settings)
    assert Conversation(llm).title.startswith(begins)


@pytest.mark.parametrize("place", ["gpt_oss_folder", "packaged"])
def test_published_chat_models_have_learned_chats(request, place):
    """By the files that are published."""
    folder = packaged_model() if place == "packaged" else request.getfixturevalue(place)
    llm, _ = scripted_llm(folder, [], **read_generation_config(folder))
    assert Conversation(llm).title.startswith("harmony chat")


def test_tools_need_a_chat_format(tmp_path):
    llm, _ = scripted_llm(write_byte_tokenizer(tmp_path, ["<|endoftext|>"]), [])
    with pytest.raises(OssiaError, match="cannot call tools"):
        Conversation(llm, tools=BUILT_IN)
