"""A folder's vocabulary files give the ids that transformers reads from them."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, AutoTokenizer, GPT2Tokenizer, Qwen2Tokenizer

from ossia.errors import OssiaError
from ossia.text import load_format, load_tokenizer

TEXT = "A nephrolith and ACE2-R were found; the nephroliths, x<ref>y [ENT] Grüße\n"
MARK = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[dict[str, int], list[Any]]:
    """Vocabulary and merges of a byte-level BPE with a few hundred tokens."""
    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=alphabet,
        show_progress=False,
        special_tokens=["<|endoftext|>"],
    )
    inner.train_from_iterator(
        [TEXT] * 3 + ["the found were and a x y 2024 Don't we'll"] * 3, trainer
    )
    model = json.loads(inner.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def saved(
    folder: Path,
    small: Any,
    kind: type[Any] = GPT2Tokenizer,
    tokens: Sequence[Any] = (),
    **settings: Any,
) -> Path:
    """A folder that transformers saved, with added tokens."""
    theirs = kind(vocab=dict(small[0]), merges=list(small[1]), **settings)
    theirs.add_tokens(list(tokens))
    theirs.save_pretrained(folder)
    return folder


def edit(file: Path, drop: tuple[str, ...] = (), **values: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    for key in drop:
        content.pop(key, None)
    file.write_text(json.dumps(content | values))


def ids_of_transformers(folder: Path, text: str, *, special_as_text: bool = True) -> list[int]:
    theirs = AutoTokenizer.from_pretrained(folder, split_special_tokens=special_as_text)
    return theirs(text, add_special_tokens=False)["input_ids"]


def check(folder: Path, text: str = TEXT, *, control: bool = True) -> list[int]:
    """The ids of ordinary text, and with `control` of a template's, are those of transformers."""
    ours = load_tokenizer(folder)
    assert ours.encode(text) == ids_of_transformers(folder, text)
    if control:
        assert ours.encode_control(text) == ids_of_transformers(folder, text, special_as_text=False)
    return ours.encode(text)


WORDS = {
    "plain": ["nephrolith", "ACE2-R"],
    "in brackets": ["<ref>", "[ENT]"],
    "not ascii": ["Grüße", "世界"],
    "with spaces": [" were found", "and ACE2"],
    "lstrip": [AddedToken("<ref>", lstrip=True), AddedToken("[ENT]", lstrip=True)],
    "rstrip": [AddedToken("ACE2-R", rstrip=True)],
    "single word": [AddedToken("nephrolith", single_word=True), AddedToken("x", single_word=True)],
    "not normalized": [AddedToken("nephrolith", normalized=False)],
    "one in another": ["nephro", "nephrolith", "lith"],
}


@pytest.mark.parametrize("kind", [GPT2Tokenizer, Qwen2Tokenizer])
@pytest.mark.parametrize("words", WORDS)
def test_words_that_were_added_are_read_as_in_transformers(words, kind, small, tmp_path):
    plain = check(saved(tmp_path / "plain", small, kind))
    assert check(saved(tmp_path / "added", small, kind, WORDS[words])) != plain


@pytest.mark.parametrize("words", WORDS)
def test_words_that_were_added_are_shown_in_replies(words, small, tmp_path):
    tokenizer = load_tokenizer(saved(tmp_path, small, tokens=WORDS[words]))
    names = [str(word) for word in WORDS[words]]
    ids = [tokenizer._inner.token_to_id(name) or 0 for name in names]
    assert not set(names) & tokenizer.control.keys()
    assert tokenizer.decode(ids) == "".join(names)
    parser = load_format(tmp_path, tokenizer).parser()
    shown = [event.text for id in ids for event in parser.push(id)]  # type: ignore[union-attr]
    assert "".join(shown) == "".join(names)


def special(name: str, **flags: bool) -> AddedToken:
    return AddedToken(name, special=True, **flags)


SPECIAL = {
    "plain": [special("<ref>"), special("[ENT]")],
    "a word": [special("nephrolith"), special("ACE2-R")],
    "lstrip": [special("<ref>", lstrip=True), special("[ENT]", lstrip=True)],
    "rstrip": [special("[ENT]", rstrip=True), special("ACE2-R", rstrip=True)],
    "both": [special("and", lstrip=True, rstrip=True)],
    "single word": [special("nephrolith", single_word=True), special("2-R", single_word=True)],
}


@pytest.mark.parametrize("tokens", SPECIAL)
def test_special_tokens_are_text_to_users_and_tokens_to_templates(tokens, small, tmp_path):
    ids = check(saved(tmp_path, small, tokens=SPECIAL[tokens]))
    control = load_tokenizer(tmp_path).control
    assert {str(token) for token in SPECIAL[tokens]} <= control.keys()
    assert not set(ids) & set(control.values())


def test_random_tokens_with_random_flags(small, tmp_path):
    """Special tokens may have any; words, too, as long as no template writes them."""
    draw = random.Random(5)
    names = ["nephrolith", "ACE2", "<ref>", "[ENT]", "and", " the", "Grüße", "er", "-", "\n"]
    for n in range(40):
        plain_words = n % 2 == 0
        tokens = []
        for name in draw.sample(names, draw.randint(1, 4)):
            is_special = draw.random() < 0.5
            flagged = is_special or not plain_words
            flags = {
                flag: flagged and draw.random() < 0.3
                for flag in ("lstrip", "rstrip", "single_word")
            }
            tokens.append(AddedToken(name, special=is_special, normalized=not is_special, **flags))
        folder = saved(
            tmp_path / str(n), small, draw.choice([GPT2Tokenizer, Qwen2Tokenizer]), tokens
        )
        text = "".join(draw.choice([*names, " ", "x", ", "]) for _ in range(40))
        check(folder, text, control=plain_words)


def legacy(folder: Path) -> Path:
    """The folder as older versions of transformers wrote it: added tokens in files of their own."""
    edit(folder / "tokenizer_config.json", drop=("added_tokens_decoder",))
    inner = json.loads((folder / "tokenizer.json").read_text())
    added = {token["content"]: token["id"] for token in inner["added_tokens"]}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    edit(folder / "tokenizer.json", added_tokens=[])
    return folder


@pytest.mark.parametrize("words", ["plain", "in brackets", "with spaces", "one in another"])
def test_added_tokens_json_of_older_versions(words, small, tmp_path):
    folder = legacy(saved(tmp_path, small, tokens=WORDS[words]))
    tokenizer = load_tokenizer(folder)
    check(folder)
    ids = json.loads((folder / "added_tokens.json").read_text())
    assert {name: tokenizer._inner.token_to_id(name) for name in ids} == ids


def test_special_tokens_map_json_says_what_is_special(small, tmp_path):
    folder = legacy(saved(tmp_path, small, tokens=["<ref>", "[ENT]"]))
    edit(folder / "special_tokens_map.json", extra_special_tokens=["<ref>"], sep_token="[ENT]")
    check(folder)
    assert {"<ref>", "[ENT]"} <= load_tokenizer(folder).control.keys()


@pytest.mark.parametrize("kind", [GPT2Tokenizer, Qwen2Tokenizer])
@pytest.mark.parametrize("wanted", [True, False, None])
@pytest.mark.parametrize("inside", [True, False])
def test_a_space_before_the_text_is_added_as_the_files_say(kind, wanted, inside, small, tmp_path):
    """`inside` tokenizer.json it says otherwise."""
    folder = saved(tmp_path, small, kind, ["<ref>"])
    edit(folder / "tokenizer_config.json", drop=("add_prefix_space",))
    if wanted is not None:
        edit(folder / "tokenizer_config.json", add_prefix_space=wanted)
    content = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(
        content.replace('"add_prefix_space": false', f'"add_prefix_space": {str(inside).lower()}')
    )
    ids = check(folder)
    assert load_tokenizer(folder).decode(ids[:3]).startswith(" ") == (wanted is True)


@pytest.mark.parametrize("kind", [GPT2Tokenizer, Qwen2Tokenizer])
@pytest.mark.parametrize("marked", [False, True])
def test_vocab_and_merges_without_tokenizer_json(kind, marked, small, tmp_path):
    folder = saved(tmp_path, small, kind, ["nephrolith", "<ref>"])
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(small[0]))
    merges = "\n".join(["#version: 0.2", *(" ".join(merge) for merge in small[1])]) + "\n"
    (folder / "merges.txt").write_text(merges)
    ids = check(folder, "Don't 2024\n\n we'll " + TEXT)
    if marked:
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(MARK + content.replace(b"\n", b"\r\n"))
        assert load_tokenizer(folder).encode("Don't 2024\n\n we'll " + TEXT) == ids


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_a_mark_at_the_beginning_of_a_file_is_read_over(name, small, tmp_path):
    folder = legacy(saved(tmp_path, small, tokens=["nephrolith"]))
    ids = load_tokenizer(folder).encode(TEXT)
    (folder / name).write_bytes(MARK + (folder / name).read_bytes())
    assert load_tokenizer(folder).encode(TEXT) == ids


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added_tokens_decoder must be"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder must"),
        ("tokenizer_config.json", {"eos_token": 7}, "a special token must be a string"),
        ("added_tokens.json", {"a": "b"}, "added_tokens.json: must be an object of ids"),
        ("special_tokens_map.json", {"pad_token": 7}, "a special token must be a string"),
    ],
)
def test_wrong_files_are_named(file, values, message, small, tmp_path):
    folder = legacy(saved(tmp_path, small))
    edit(folder / file, **values)
    with pytest.raises(OssiaError, match=message) as error:
        load_tokenizer(folder)
    assert str(error.value).startswith(str(folder / file))


def test_the_tags_of_reasoning_and_tools_are_no_words(qwen3_folder, qwen3_tokenizer):
    """Though Qwen3 does not call them special, a user cannot write them."""
    for tag in ("<think>", "</think>", "<tool_call>", "</tool_response>"):
        assert qwen3_tokenizer.control[tag] not in qwen3_tokenizer.encode(f"a {tag} b")
    middle = qwen3_tokenizer._inner.token_to_id("<|fim_middle|>")
    theirs = AutoTokenizer.from_pretrained(qwen3_folder)
    text = "<|fim_prefix|>def f(<|fim_suffix|>pass<|fim_middle|>"
    assert qwen3_tokenizer.encode(text) == theirs(text)["input_ids"]
    assert qwen3_tokenizer.decode([middle]) == "<|fim_middle|>"
