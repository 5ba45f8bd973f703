"""A run's vocabulary learns the words that `python -m recipes.stdlib words` writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ossia
from ossia.text import Chat, load_tokenizer
from ossia.text.chat import Role
from ossia.text.harmony.messages import from_chat
from ossia.text.harmony.render import contents
from ossia.train.runs.pretrain import Run
from ossia.train.settings import Settings
from recipes.stdlib.command import app

MODEL = Path(ossia.__file__).parent / "models" / "ossia-stdlib"


def test_a_run_that_reads_the_words_needs_few_tokens_for_harmony(
    tiny: Settings, ossia_command, tmp_path: Path
) -> None:
    words = tmp_path / "words.jsonl"
    assert ossia_command("words", "--out", words, commands=app).code == 0
    settings = replace(tiny, vocab_size=1024)
    Run.start(settings, tmp_path / "bare")
    Run.start(replace(settings, vocabulary_data=str(words)), tmp_path / "out")
    bare, tokenizer = (load_tokenizer(tmp_path / name) for name in ("bare", "out"))
    chat = Chat.of([{"role": "user", "content": "How many letters?"}], date="2031-12-24")
    system, _ = contents(from_chat(chat))
    assert len(tokenizer.encode(system)) < len(bare.encode(system)) / 3
    assert all(len(tokenizer.encode(header)) == 1 for header in Role)


def test_the_file_is_new(ossia_command, tmp_path: Path) -> None:
    (tmp_path / "words.jsonl").write_text("mine")
    for out in (tmp_path / "words.jsonl", tmp_path / "absent" / "words.jsonl"):
        result = ossia_command("words", "--out", out, commands=app)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert "not a new file" in result.err
    assert (tmp_path / "words.jsonl").read_text() == "mine"
