"""`ossia xray`: a page, JSON and arrays of a text, a file or a conversation."""

import json
from itertools import pairwise

import pytest

from ossia.insight.xray import Trace
from ossia.text import load_tokenizer

CHAT = [{"role": "user", "content": "Hi"}]
REPLY = {"role": "assistant", "content": "Ho"}


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def xray(ossia_command, model_folder, *arguments):
    return ossia_command("xray", "--model", model_folder, *arguments)


def test_a_page_and_arrays(ossia_command, model_folder, tmp_path):
    pytest.importorskip("numpy")
    page, arrays = tmp_path / "new" / "x.html", tmp_path / "other" / "new" / "x.npz"
    made = xray(ossia_command, model_folder, "Hello", "--out", page, "--npz", arrays)
    assert made.code == 0
    assert "tiny: 5 tokens, " in made.out
    assert "<title>X-ray: tiny</title>" in page.read_text("utf-8")
    trace = Trace.load_from(arrays)
    assert trace.tokens.tolist() == load_tokenizer(model_folder).encode("Hello")


def test_a_single_token_has_no_loss(ossia_command, model_folder, tmp_path):
    made = xray(ossia_command, model_folder, "H", "--no-effects", "--out", tmp_path / "x.html")
    assert made.out.startswith("tiny: 1 token\n")


def test_json_instead_of_a_page(ossia_command, model_folder, tmp_path, monkeypatch, stdin):
    monkeypatch.chdir(tmp_path)
    stdin("Hello\n")
    made = xray(ossia_command, model_folder, "-", "--json", "--no-effects")
    data = json.loads(made.out)
    assert [token["text"] for token in data["tokens"]] == [*"Hello"]
    assert data["effects"] == {}
    assert not [*tmp_path.iterdir()]


def test_a_file_and_a_reply(ossia_command, model_folder, tmp_path):
    (tmp_path / "text").write_text("Hélas", encoding="utf-8")
    file = ("--file", tmp_path / "text", "--json")
    texts = [t["text"] for t in json.loads(xray(ossia_command, model_folder, *file).out)["tokens"]]
    assert texts == ["H", "", "é", "l", "a", "s"]
    longer = json.loads(xray(ossia_command, model_folder, *file, "--reply", 3).out)["tokens"]
    assert len(longer) == 9
    for before, token in pairwise(longer[5:]):
        assert token["id"] == before["top"][0]["id"]


def test_a_conversation_with_its_reply(ossia_command, tmp_path):
    file = tmp_path / "chat.json"
    texts = []
    for messages in (CHAT, [*CHAT, REPLY]):
        file.write_text(json.dumps({"messages": messages, "date": "2026-11-28"}))
        made = ossia_command("xray", "--messages", file, "--json", "--no-effects", "--lens", 0)
        texts.append("".join(t["text"] for t in json.loads(made.out)["tokens"]))
    prompt, whole = texts
    assert prompt.endswith("<|start|>user<|message|>Hi<|end|><|start|>assistant")
    assert whole == prompt + "<|channel|>final<|message|>Ho<|return|>"
    file.write_text(json.dumps(CHAT))
    options = ("--effort", "high", "--compare", "effort=low", "--json", "--no-effects")
    data = json.loads(ossia_command("xray", "--messages", file, *options).out)
    texts = ["".join(t["text"] for t in one["tokens"]) for one in data["xrays"]]
    assert ["Reasoning: high" in texts[0], "Reasoning: low" in texts[1]] == [True, True]
    assert data["difference"] is None  # the texts are not the same


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (["sinks=off"], "tiny, sinks=off"),
        (["windows=off", "dense=int8"], "tiny, windows=off, dense=int8"),
    ],
)
def test_a_comparison_with_a_change(ossia_command, model_folder, changes, name):
    options = [part for change in changes for part in ("--compare", change)]
    made = xray(ossia_command, model_folder, "Hello, world", "--json", "--no-effects", *options)
    data = json.loads(made.out)
    assert [one["model"] for one in data["xrays"]] == ["tiny", name]
    assert data["difference"]["mean_kl"] > 0


def test_a_comparison_with_a_model_and_with_a_text(ossia_command, model_folder, tmp_path):
    page = tmp_path / "x.html"
    made = xray(ossia_command, model_folder, "Hello", "--compare", model_folder, "-o", page)
    assert made.code == 0
    assert "X-ray: tiny against tiny" in page.read_text("utf-8")
    made = xray(ossia_command, model_folder, "Hello", "--json", "--compare", "text=Bye")
    texts = [[t["text"] for t in one["tokens"]] for one in json.loads(made.out)["xrays"]]
    assert texts == [[*"Hello"], [*"Bye"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no text: give one of TEXT, --file and --messages"),
        (["a", "--file", "b"], "TEXT and --file: give one of TEXT, --file and --messages"),
        ([""], "the text is empty: there is nothing to x-ray"),
        (["--file", "absent"], "absent: No such file or directory"),
        (["a", "--effort", "low"], "--reasoning-effort: only a chat has one; give --messages"),
        (["a", "--maps", "9.9"], "--maps 9.9: write LAYER.HEAD, LAYER or all; there are layers 0 "),
        (["a" * 99], "the text has 99 tokens, and the model's context is 64"),
        (["a", "--compare", "sinks=on"], "--compare sinks=on: give another model, or one of "),
        (["a", "--compare", "effort=low"], "--compare effort=low: only a chat has an effort"),
        (["a", "--compare", "x", "--compare", "y"], "--compare takes one other model"),
        (["a", "--out", "."], "cannot write to .: it is a folder; give a file in it"),
    ],
)
def test_bad_input_is_one_line(
    ossia_command, model_folder, monkeypatch, tmp_path, arguments, message
):
    monkeypatch.chdir(tmp_path)
    made = xray(ossia_command, model_folder, *arguments)
    assert made.code == 2
    assert made.err.splitlines()[-1].startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "give a list of messages, or an object with messages"),
        ("[", "is not valid JSON"),
        ('[{"role": "nobody"}]', "messages[0]: role must be one of"),
    ],
)
def test_conversations_that_are_none(ossia_command, tmp_path, content, message):
    (tmp_path / "chat.json").write_text(content)
    made = ossia_command("xray", "--messages", tmp_path / "chat.json")
    assert made.code == 2
    assert message in made.err
