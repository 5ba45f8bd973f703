"""`ossia chat` in a pipe, each line a turn and plain text out; and with its one turn given."""

import json
import os
import signal

import pytest

from ossia.api import Finished
from ossia.cli.session import interrupts, no_echo
from ossia.text import load_tokenizer
from ossia.tools import BUILT_IN
from tests.cli.chats import CALCULATE, CALL, final


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
        assert "/clear starts over" in result.err.splitlines()[-1]

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

    def test_a_block_is_one_turn_and_holds_no_commands(
        self, ossia_command, script, stdin, bytes_folder
    ):
        engine = script(final("a"), final("b"), final("c"))
        stdin('"""\n/exit\n    two\n"""\n"""one line"""\nplain\n')
        assert ossia_command("chat", "--model", "scripted").out == "a\nb\nc\n"
        turns = [prompt_text(engine, n, bytes_folder) for n in range(3)]
        assert "<|message|>/exit\n    two<|end|>" in turns[0]
        assert "<|message|>one line<|end|>" in turns[1]
        assert "<|message|>plain<|end|>" in turns[2]

    def test_a_block_that_is_not_closed_is_an_error(self, ossia_command, script, stdin):
        engine = script(final("a"))
        stdin('"""\nhalf\n')
        result = ossia_command("chat", "--model", "scripted")
        assert (result.code, result.out, engine.requests) == (2, "", [])
        assert 'began with """ is not closed' in result.err

    def test_qwens_switches_and_escaped_commands_are_turns(
        self, ossia_command, script, stdin, bytes_folder
    ):
        engine = script(final("a"), final("b"))
        stdin("/no_think Why?\n//help\n")
        assert ossia_command("chat", "--model", "scripted").out == "a\nb\n"
        assert "<|message|>/no_think Why?<|end|>" in prompt_text(engine, 0, bytes_folder)
        assert "<|message|>/help<|end|>" in prompt_text(engine, 1, bytes_folder)

    def test_settings_reach_the_sampler(self, ossia_command, script, stdin):
        engine = script(final("a"), final("b"), temperature=0.3)
        stdin("x\n/set temperature 1.5\ny\n")
        penalties = ("--repeat-penalty", 1.1, "--presence-penalty", 0.5, "--frequency-penalty", -1)
        ossia_command("chat", "--model", "scripted", "--temp", 0, *penalties)
        first, second = (request.sampling for request in engine.requests)
        assert (first.temperature, second.temperature) == (0, 1.5)
        assert (first.repetition_penalty, first.presence_penalty) == (1.1, 0.5)
        assert first.frequency_penalty == -1

    def test_a_checkpoint_answers(self, ossia_command, model_folder, stdin):
        stdin("\n")
        assert ossia_command("chat", "--model", model_folder).code == 0


class TestOneTurn:
    @pytest.mark.parametrize("words", [("Hi",), ("-p", "Hi"), ("--prompt", "Hi"), ("-",)])
    def test_it_is_answered_and_the_program_ends(
        self, ossia_command, script, stdin, bytes_folder, words
    ):
        engine = script(final("Hello."))
        stdin("Hi\n")
        result = ossia_command("chat", *words, "--model", "scripted")
        assert (result.code, result.out) == (0, "Hello.\n")
        assert "<|message|>Hi<|end|>" in prompt_text(engine, 0, bytes_folder)
        assert len(engine.requests) == 1

    def test_its_lines_and_slashes_are_text(self, ossia_command, script, stdin, bytes_folder):
        engine = script(final("Hello."))
        stdin("/help\nme\n")
        assert ossia_command("chat", "-", "--model", "scripted").out == "Hello.\n"
        assert "<|message|>/help\nme<|end|>" in prompt_text(engine, 0, bytes_folder)

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (("Hi", "--prompt", "Ho"), "given twice"),
            (("gpt-oss-20b",), "'gpt-oss-20b' is a model, not a message: ossia chat --model gpt"),
            (("Qwen/Qwen3-0.6B",), "ossia chat --model Qwen/Qwen3-0.6B"),
            (("",), "the message is empty"),
        ],
    )
    def test_what_is_no_turn_is_refused_before_a_model_is_loaded(
        self, ossia_command, monkeypatch, words, says
    ):
        monkeypatch.setattr("ossia.cli.chat.open_llm", None)
        result = ossia_command("chat", *words)
        assert (result.code, result.out) == (2, "")
        assert says in result.err

    def test_a_folder_with_a_model_is_no_message(self, ossia_command, model_folder):
        result = ossia_command("chat", model_folder)
        assert result.code == 2
        assert "is a model, not a message" in result.err


def test_quiet_leaves_only_the_reply(ossia_command):
    for words in (("chat", "What is 2 + 2?"), ("generate", "def ", "-n", 2)):
        loud = ossia_command(*words, "--seed", 1)
        quiet = ossia_command(*words, "--seed", 1, "-q")
        assert quiet.out == loud.out != ""
        assert "backend" in loud.err
        assert quiet.err == ""


def test_what_is_typed_during_a_reply_is_not_echoed_but_waits(monkeypatch):
    termios = pytest.importorskip("termios")
    keyboard, terminal = os.openpty()
    with open(terminal) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        before = termios.tcgetattr(terminal)
        with no_echo(terminal):
            os.write(keyboard, b"next\n")
            assert stdin.readline() == "next\n"
            os.set_blocking(keyboard, False)
            with pytest.raises(BlockingIOError):
                os.read(keyboard, 1)
        assert termios.tcgetattr(terminal) == before
    os.close(keyboard)


def test_sigint_interrupts_the_stream_and_a_second_one_the_program(conversation):
    talk, _ = conversation("<|channel|>final<|message|>Hello")
    before = signal.getsignal(signal.SIGINT)
    stream = talk.ask("x")
    with interrupts(stream):
        signal.raise_signal(signal.SIGINT)
        assert [type(event) for event in stream] == [Finished]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
