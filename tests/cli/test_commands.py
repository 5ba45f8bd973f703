"""The slash commands of a chat, and which lines are none."""

import json

import pytest

from ossia.cli.commands import Commands
from ossia.cli.conversation import Conversation
from ossia.errors import OssiaError
from ossia.options import SamplingOptions, settings
from ossia.tools import BUILT_IN
from tests.cli.chats import converse, final
from tests.scripted import scripted_llm, write_byte_tokenizer


@pytest.fixture
def talk(conversation):
    return conversation(final("a"))[0]


@pytest.fixture
def commands(talk):
    return Commands(talk)


@pytest.mark.parametrize(
    "line", ["/help", "/?", "/system be kind", "/nonsense", "/Help", "/thinker"]
)
def test_a_word_after_a_slash_is_a_command(line):
    assert Conversation.is_command(line)


@pytest.mark.parametrize(
    ("line", "turn"),
    [
        *(
            (line, line)
            for line in ("/usr/bin/ls does what?", "and/or", "/", "/ 2", "// a comment")
        ),
        *((line, line) for line in ("/think", "/think Why?", "/no_think Why?", "Why? /no_think")),
        ("//help", "/help"),
        ("//think why", "/think why"),
        ("//usr/bin", "/usr/bin"),
    ],
)
def test_other_lines_are_turns_and_two_slashes_stand_for_one(line, turn):
    assert not Conversation.is_command(line)
    assert Conversation.turn_of(line) == turn


def test_help_names_every_command_and_key(commands):
    text = commands.run("/help")
    assert all(name in text for name in commands.names)
    assert all(key in text for key in ("Alt-Enter", "Ctrl-C", "Ctrl-D", '"""', "//TEXT"))
    assert commands.run("/HELP") == commands.run("/?") == text


def test_effort_alone_shows_it(commands):
    assert commands.run("/effort") == "reasoning effort: medium"
    commands.run("/effort high")
    assert commands.run("/effort") == "reasoning effort: high"


@pytest.mark.parametrize("line", ["/clear", "/reset", "/new"])
def test_clear_forgets_the_turns_and_keeps_the_instructions(talk, commands, tmp_path, line):
    commands.run("/system Be kind.")
    converse(talk, "x")
    assert len(talk.messages) == 2
    commands.run(line)
    file = tmp_path / "new" / "talk.json"
    commands.run(f"/save {file}")
    saved = json.loads(file.read_text())
    assert saved["messages"] == [{"role": "system", "content": "Be kind."}]


@pytest.mark.parametrize("line", ["/exit", "/bye", "/quit"])
def test_the_chat_can_be_left(commands, line):
    commands.run(line)
    assert commands.ended


def test_tools_are_shown_and_switched(talk, commands):
    assert commands.run("/tools") == "tools are on: calculate, documentation"
    assert commands.run("/tools off").startswith("tools are off")
    assert talk.tools == ()
    commands.run("/tools on")
    assert talk.tools == BUILT_IN


def test_tools_need_a_model_that_can_call_them(tmp_path):
    llm, _ = scripted_llm(write_byte_tokenizer(tmp_path, ["<|endoftext|>"]), [])
    with pytest.raises(OssiaError, match="cannot call tools"):
        Commands(Conversation(llm)).run("/tools on")


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("/set temperature 0.5", {"temperature": 0.5}),
        ("/set parameter temperature 0.5", {"temperature": 0.5}),  # as in ollama
        ("/set temp 0", {"temperature": 0.0}),
        ("/set top-p 0.9", {"top_p": 0.9}),
        ("/set top_k 7", {"top_k": 7}),
        ("/set --max-tokens 20", {"max_tokens": 20}),
        ("/set seed -3", {"seed": -3}),
        ("/set repeat-penalty 1.1", {"repetition_penalty": 1.1}),
        ("/set stop a b", {"stop": ("a b",)}),
    ],
)
def test_set_changes_a_setting_which_the_next_reply_is_drawn_with(conversation, line, changed):
    talk, engine = conversation(final("a"))
    Commands(talk).run(line)
    assert talk.sampling == SamplingOptions(**changed)
    converse(talk, "x")
    drawn = engine.requests[0].sampling
    assert all(getattr(drawn, name, value) == value for name, value in changed.items())


def test_set_shows_settings_and_takes_them_back(talk, commands):
    commands.run("/set min-p 0.25")
    assert commands.run("/set min-p") == "min-p: 0.25"
    listed = commands.run("/set")
    assert all(s.name.replace("_", "-") in listed for s in settings(SamplingOptions))
    assert commands.run("/set min-p default") == "min-p: default"
    assert talk.sampling == SamplingOptions()


def test_set_also_takes_what_has_a_command_or_an_option(talk, commands):
    commands.run("/set system Be kind.")
    commands.run("/set effort low")
    commands.run("/set thinking off")
    assert (talk.system, talk.effort, talk.thinking) == ("Be kind.", "low", False)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/paint", "unknown command /paint; there are /help"),
        ("/paint", "type two: //paint"),
        ("/effort extreme", "extreme"),
        ("/save", "needs a file name"),
        ("/save /dev/null/talk.json", "/dev/null is a file, not a folder"),
        ("/tools some", "on or off, not some"),
        ("/set color red", "there is no such setting; there are thinking, max-tokens"),
        ("/set temperature warm", "--temperature must be a number, not warm"),
        ("/set top-p 2", "--top-p must be above 0 and at most 1, not 2"),
        ("/set thinking maybe", "on or off, not maybe"),
    ],
)
def test_a_wrong_one_is_refused_and_changes_nothing(talk, commands, line, says):
    before = (talk.effort, talk.messages, talk.sampling, talk.thinking, talk.tools)
    with pytest.raises(OssiaError) as error:
        commands.run(line)
    assert says in str(error.value)
    assert (talk.effort, talk.messages, talk.sampling, talk.thinking, talk.tools) == before
    assert not commands.ended
