"""Every vocabulary gives the published ids, and text never becomes a control token."""

import shutil
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.errors import OssiaError
from ossia.text import StreamDecoder, Tokenizer, load_tokenizer

KEYS = {"gpt_oss": "o200k_harmony", "qwen3": "qwen3", "gpt2": "gpt2"}


@pytest.fixture(params=KEYS)
def case(request, golden):
    tokenizer = request.getfixturevalue(f"{request.param}_tokenizer")
    return tokenizer, KEYS[request.param], golden("tokenizer_ids")["rows"]


@pytest.mark.parametrize("at_once", [2**14, -1])
def test_ids_are_the_published_ones(case, at_once, monkeypatch):
    monkeypatch.setattr("ossia.text.tokenizer._AT_ONCE", at_once)  # a long text goes another way
    tokenizer, key, rows = case
    assert len(rows) == 66
    for row in rows:
        assert tokenizer.encode_control(row["text"]) == row[key], row["name"]
        assert tokenizer.encode(row["text"]) == row.get("ordinary", row)[key], row["name"]


def test_decoding_gives_the_text_back(case):
    tokenizer, key, rows = case
    for row in rows:
        text = unicodedata.normalize("NFC", row["text"]) if key == "qwen3" else row["text"]
        assert tokenizer.decode(row[key]) == text, row["name"]
        stream = tokenizer.stream()
        assert "".join(map(stream.push, row[key])) + stream.finish() == text, row["name"]


@settings(max_examples=200)
@given(data=st.data())
def test_no_text_becomes_a_control_token(qwen3_tokenizer, gpt_oss_tokenizer, data):
    tokenizer = data.draw(st.sampled_from([qwen3_tokenizer, gpt_oss_tokenizer]))
    control = st.sampled_from(sorted(tokenizer.control))
    pieces = data.draw(st.lists(st.one_of(control, st.text(max_size=5)), max_size=8))
    ids = tokenizer.encode("".join(pieces))
    assert not set(ids) & set(tokenizer.control.values())


def test_stream_holds_the_bytes_of_a_character_until_it_is_whole(gpt_oss_tokenizer):
    ids = gpt_oss_tokenizer.encode("👩🏽‍🚀 ok")
    stream = gpt_oss_tokenizer.stream()
    pieces = [stream.push(id) for id in ids]
    assert "" in pieces, "the astronaut takes several tokens a character"
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == "👩🏽‍🚀 ok"


@given(chunks=st.lists(st.binary(min_size=1, max_size=4), max_size=12))
def test_any_bytes_stream_to_what_they_decode_to_at_once(chunks):
    class Vocabulary:
        def token_bytes(self, id):
            return chunks[id]

    stream = StreamDecoder(Vocabulary())  # type: ignore[arg-type]
    text = "".join(stream.push(id) for id in range(len(chunks))) + stream.finish()
    assert text == b"".join(chunks).decode("utf-8", "replace")


def test_ids_without_a_token_have_no_bytes(qwen3_tokenizer):
    assert qwen3_tokenizer.vocab_size == 151_669
    assert qwen3_tokenizer.token_bytes(151_900) == b""  # below the embedding's 151,936 rows
    assert qwen3_tokenizer.token_bytes(-1) == b""
    assert qwen3_tokenizer.token_bytes(qwen3_tokenizer.control["<think>"]) == b"<think>"


def test_lone_surrogates_do_not_stop_a_request(gpt2_tokenizer):
    assert gpt2_tokenizer.decode(gpt2_tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert gpt2_tokenizer.decode(gpt2_tokenizer.encode("\ud83d\ude80")) == "🚀"


def write_gpt2_files(tokenizer: Tokenizer, folder):
    """vocab.json and merges.txt, as GPT-2 was first published."""
    tokenizer._inner.model.save(str(folder))


def test_gpt2_loads_from_vocab_and_merges(gpt2_tokenizer, golden, tmp_path):
    write_gpt2_files(gpt2_tokenizer, tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.control == {"<|endoftext|>": 50256}
    for row in golden("tokenizer_ids")["rows"]:
        assert tokenizer.encode_control(row["text"]) == row["gpt2"], row["name"]
        assert tokenizer.encode(row["text"]) == row.get("ordinary", row)["gpt2"], row["name"]


def test_an_absent_tokenizer_is_named_with_what_to_do(tmp_path):
    with pytest.raises(OssiaError, match=r"tokenizer\.json.*copy them") as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_truncated_tokenizer_is_named(gpt2_folder, gpt2_tokenizer, tmp_path):
    content = (gpt2_folder / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(content[: len(content) // 2])
    with pytest.raises(OssiaError, match=r"tokenizer\.json: cannot be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    write_gpt2_files(gpt2_tokenizer, tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(OssiaError, match=r"vocab\.json"):
        load_tokenizer(tmp_path)


def test_other_kinds_of_tokenizer_are_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text(
        '{"version":"1.0","added_tokens":[],"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}'
    )
    with pytest.raises(OssiaError, match="byte-level BPE"):
        load_tokenizer(tmp_path)


def test_the_folder_may_be_moved_after_loading(gpt2_folder, tmp_path):
    shutil.copy(gpt2_folder / "tokenizer.json", tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert tokenizer.encode("Hello") == [15496]
