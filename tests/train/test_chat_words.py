"""The vocabulary of a run knows harmony's own words, which its text need not hold."""

from __future__ import annotations

from ossia.text import Chat, Tokenizer
from ossia.text.chat import Role
from ossia.text.harmony.messages import from_chat
from ossia.text.harmony.render import contents
from ossia.train.corpus import vocabulary
from ossia.train.corpus.chat_words import chat_words


def test_harmony_takes_few_tokens() -> None:
    source = "def add(a, b):\n    return a + b  # the sum\n" * 20
    bare = Tokenizer(vocabulary.learn([source], 1024))
    tokenizer = Tokenizer(vocabulary.learn([source, *chat_words()], 1024))
    chat = Chat.of([{"role": "user", "content": "How many letters?"}], date="2031-12-24")
    system, _ = contents(from_chat(chat))
    assert len(tokenizer.encode(system)) < len(bare.encode(system)) / 3
    assert all(len(tokenizer.encode(header)) == 1 for header in Role)


def test_the_words_are_the_same_every_day() -> None:
    assert chat_words() == chat_words()
    assert "Current date: 2026-01-01" in chat_words()[0]
