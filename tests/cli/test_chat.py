"""`ossia chat` in a pipe: each line a turn, plain text out; and the conversation behind it."""

import json
import os
import signal

import pytest

from ossia.api import Finished
from ossia.cli.chat import _interrupts, _no_echo
from ossia.cli.conversation import Conversation
from ossia.errors import OssiaError
from ossia.text import Channel, TextDelta, load_tokenizer
from ossia.tools import BUILT_IN
from tests.scripted import CONTROL, scripted_llm, write_byte_tokenizer


def final(text, analysis="Hm."):
    return (
        f"<|channel|>analysis<|message|>{analysis}<|end|>"
        f"<|start|>assistant<|channel|>final<|message|>{text}<|return|>"
    )


CALL = (
    "<|channel|>commentary to=functions.weather <|constrain|>json"
    '<|message|>{"city": "Oslo"}<|call|>'
)

CALCULATE = (
    "<|channel|>commentary to=functions.calculate <|constrain|>json"
    '<|message|>{"expression": "6 * 7"}<|call|>'
)


def prompt_text(engine, number, folder):
    return load_tokenizer(folder).decode(engine.requests[number].prompt)


class TestPipe:
    def test_each_line_is_a_turn_and_the_answers_are_plain(self, ossia_command, script, stdin):
        script(final("# Hello **you**"), final("Bye, é."))
        stdin("Hi\n\nGood bye\n")
        result = ossia_command("chat", "--model", "scripted")
        assert result.code == 0
        assert result.out == "# Hello **you**\nBye, é.\n"
        assert "\x1b" not in result.out + result.err

    def test_earlier_turns_are_rendered_and_their_reasoning_dropped(
        self, ossia_command, script, stdin, bytes_folder
    ):
        engine = script(final("Hello."), final("Bye."))
        stdin("Hi\nGood bye\n")
        ossia_command("chat", "--model", "scripted", "--system", "Be brief.")
        prompt = prompt_text(engine, 1, bytes_folder)
        assert "Be brief." in prompt
        assert "<|channel|>final<|message|>Hello.<|end|>" in prompt
        assert "Hm." not in prompt

    def test_a_model_of_one_turn_is_sent_the_current_one_and_a_line_says_so(
        self, ossia_command, script, stdin, bytes_folder
    ):
        scripts = final("Hello."), CALCULATE, final("It is 42."), final("Bye.")
        engine = script(*scripts, single_turn=True)
        stdin("Hi\n6 * 7?\nGood bye\n")
        words = ("chat", "--model", "scripted", "--system", "Be brief.", "--tools")
        result = ossia_command(*words)
        assert result.err.count("it is not sent earlier turns") == 1
        prompts = [prompt_text(engine, n, bytes_folder) for n in range(4)]
        assert all("Be brief." in prompt for prompt in prompts)
        assert [">Hi<" in p for p in prompts] == [True, False, False, False]
        assert "6 * 7?" in prompts[2]
        assert "<|message|>42<|end|>" in prompts[2]
        assert "6 * 7?" not in prompts[3]

    def test_reasoning_is_shown_if_asked_for(self, ossia_command, script, stdin):
        script(final("Hello.", analysis="A greeting."))
        stdin("Hi\n")
        assert (
            ossia_command("chat", "--model", "scripted", "--show-reasoning").out
            == "A greeting.\nHello.\n"
        )

    def test_a_tool_call_shows_name_and_arguments(self, ossia_command, script, stdin):
        script(CALL, final("It rains."))
        stdin("Weather?\nWell?\n")
        result = ossia_command("chat", "--model", "scripted")
        assert result.out == 'weather {"city": "Oslo"}\nIt rains.\n'

    def test_tools_are_run_and_the_model_answers_their_results(
        self, ossia_command, script, stdin, bytes_folder, tmp_path
    ):
        engine = script(CALCULATE, final("It is 42."), final("Yes."))
        stdin("6 * 7?\nSure?\n")
        file = tmp_path / "talk.json"
        result = ossia_command("chat", "--model", "scripted", "--tools", "--save", file)
        assert result.out == 'calculate {"expression": "6 * 7"}\n<- 42\nIt is 42.\nYes.\n'
        prompt = prompt_text(engine, 1, bytes_folder)
        assert "type documentation = (_: {" in prompt
        assert prompt.endswith(
            "<|start|>functions.calculate to=assistant<|channel|>commentary<|message|>42<|end|>"
            "<|start|>assistant"
        )
        saved = json.loads(file.read_text())
        assert [tool["function"]["name"] for tool in saved["tools"]] == [t.name for t in BUILT_IN]
        roles = [message["role"] for message in saved["messages"]]
        assert roles == ["user", "assistant", "tool", "assistant", "user", "assistant"]

    def test_without_tools_nothing_is_run(self, ossia_command, script, stdin, bytes_folder):
        engine = script(CALCULATE)
        stdin("6 * 7?\n")
        ossia_command("chat", "--model", "scripted", "--no-tools")
        assert len(engine.requests) == 1
        assert "# Tools" not in prompt_text(engine, 0, bytes_folder)

    def test_effort_reaches_the_prompt(self, ossia_command, script, stdin, bytes_folder):
        engine = script(final("a"), final("b"))
        stdin("x\n/effort low\ny\n")
        ossia_command("chat", "--model", "scripted", "--reasoning-effort", "high")
        assert "Reasoning: high" in prompt_text(engine, 0, bytes_folder)
        assert "Reasoning: low" in prompt_text(engine, 1, bytes_folder)

    def test_exit_ends_and_later_lines_are_not_read(self, ossia_command, script, stdin):
        script(final("a"))
        stdin("x\n/exit\ny\n")
        assert ossia_command("chat", "--model", "scripted").out == "a\n"

    def test_a_full_context_is_told(self, ossia_command, script, stdin):
        script(final("Hello."), final("never"), context_length=700)
        stdin("Hi\n" + "x" * 700 + "\n")
        result = ossia_command("chat", "--model", "scripted")
        assert result.code == 2
        assert result.out == "Hello.\n"
        assert "context of 700" in result.err.splitlines()[-1]
        assert "/reset starts over" in result.err.splitlines()[-1]

    def test_save_keeps_the_conversation_after_each_reply(
        self, ossia_command, script, stdin, tmp_path
    ):
        script(final("Hello."))
        stdin("Hi\n")
        ossia_command(
            "chat", "--model", "scripted", "--save", tmp_path / "talk.json", "--system", "Be brief."
        )
        assert json.loads((tmp_path / "talk.json").read_text())["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello.", "reasoning": "Hm."},
        ]
        assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]

    def test_a_checkpoint_answers(self, ossia_command, model_folder, stdin):
        stdin("\n")
        assert ossia_command("chat", "--model", model_folder).code == 0


@pytest.fixture
def conversation(bytes_folder):
    def build(*scripts):
        llm, engine = scripted_llm(bytes_folder, scripts)
        return Conversation(llm, {}, tools=BUILT_IN), engine

    return build


def converse(conversation, text):
    stream, remark = conversation.ask(text), ""
    while stream is not None:
        with stream:
            for event in stream:
                conversation.hear(event)
        conversation.run_tools()
        remark = conversation.reply_ended()
        stream = conversation.go_on()
    return remark


class TestCommands:
    @pytest.mark.parametrize("line", ["/help", "/system be kind", "/nonsense"])
    def test_a_word_after_a_slash_is_a_command(self, line):
        assert Conversation.is_command(line)

    @pytest.mark.parametrize("line", ["/usr/bin/ls does what?", "and/or", "/", "/ 2"])
    def test_a_path_is_not(self, line):
        assert not Conversation.is_command(line)

    def test_help_names_every_command(self, conversation):
        talk, _ = conversation()
        text = talk.command("/help")
        assert all(name in text for name in talk.commands)

    def test_upper_case_is_a_command_too(self, conversation):
        talk, _ = conversation()
        assert talk.is_command("/Help")
        assert talk.command("/Help") == talk.command("/help")

    def test_effort_alone_shows_it(self, conversation):
        talk, _ = conversation()
        assert talk.command("/effort") == "reasoning effort: medium"
        talk.command("/effort high")
        assert talk.command("/effort") == "reasoning effort: high"

    def test_reset_forgets_the_turns_and_keeps_the_instructions(self, conversation, tmp_path):
        talk, _ = conversation(final("a"))
        talk.command("/system Be kind.")
        converse(talk, "x")
        talk.command("/reset")
        talk.command(f"/save {tmp_path / 'talk.json'}")
        saved = json.loads((tmp_path / "talk.json").read_text())
        assert saved["messages"] == [{"role": "system", "content": "Be kind."}]

    @pytest.mark.parametrize(
        "line", ["/paint", "/effort extreme", "/save", "/save /nowhere/at/all.json"]
    )
    def test_a_wrong_one_is_refused_and_changes_nothing(self, conversation, line):
        talk, _ = conversation()
        with pytest.raises(OssiaError):
            talk.command(line)
        assert (talk.effort, talk.messages, talk.ended) == (None, [], False)


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

    def test_sigint_interrupts_the_stream_and_a_second_one_the_program(self, conversation):
        talk, _ = conversation("<|channel|>final<|message|>Hello")
        before = signal.getsignal(signal.SIGINT)
        stream = talk.ask("x")
        with _interrupts(stream):
            signal.raise_signal(signal.SIGINT)
            assert [type(event) for event in stream] == [Finished]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is before


def test_what_is_typed_during_a_reply_is_not_echoed_but_waits(monkeypatch):
    termios = pytest.importorskip("termios")
    keyboard, terminal = os.openpty()
    with open(terminal) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        before = termios.tcgetattr(terminal)
        with _no_echo():
            os.write(keyboard, b"next\n")
            assert stdin.readline() == "next\n"
            os.set_blocking(keyboard, False)
            with pytest.raises(BlockingIOError):
                os.read(keyboard, 1)
        assert termios.tcgetattr(terminal) == before
    os.close(keyboard)


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


@pytest.mark.parametrize(
    ("control", "begins"), [(CONTROL, "harmony chat"), (["<|endoftext|>"], "no chat format")]
)
def test_the_title_says_how_the_model_is_talked_to(tmp_path, control, begins):
    llm, _ = scripted_llm(write_byte_tokenizer(tmp_path, control), [])
    assert Conversation(llm, {}).title.startswith(begins)


def test_tools_need_a_chat_format(tmp_path):
    llm, _ = scripted_llm(write_byte_tokenizer(tmp_path, ["<|endoftext|>"]), [])
    with pytest.raises(OssiaError, match="cannot call tools"):
        Conversation(llm, {}, tools=BUILT_IN)
