"""Writes the pictures of docs/ideas that are not part of a comparison.

python -m book.pictures docs/ideas
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from ossia.checkpoint import packaged_model
from ossia.engine.kv import CacheLimits, KVCache, PagedText
from ossia.insight.diagrams import ideas, texts
from ossia.insight.drawing import standalone
from ossia.ops.paged import LayerKind
from ossia.text import Chat
from ossia.text.harmony.format import HarmonyFormat
from ossia.text.harmony.grammar import ControlToken
from ossia.text.tokenizer import Tokenizer, load_tokenizer

DATE = "2026-11-28"
_PAGE = 16  # positions
FIRST = [
    {"role": "user", "content": "Spell banana."},
    {"role": "assistant", "reasoning": "Letters: b a n a n a.", "content": "b-a-n-a-n-a"},
]
_THEN = [
    {"role": "user", "content": "What is 7 * 8?"},
    {"role": "assistant", "reasoning": "7 * 8 = 56", "content": "7 * 8 = 56."},
]
_OTHER = [
    {"role": "user", "content": "Sort 9, 4 and 7."},
    {"role": "assistant", "reasoning": "4 < 7 < 9", "content": "4, 7, 9"},
]


def pictures() -> dict[str, str]:
    """Each as an SVG file, by name."""
    tokenizer = load_tokenizer(packaged_model())
    drawn = {name: draw() for name, draw in ideas.PICTURES.items()}
    drawn["harmony"] = texts.conversation(_messages(tokenizer))
    drawn["prefix-caching"] = texts.pages(_pages(HarmonyFormat(tokenizer)))
    return {f"{name}.svg": standalone(drawing) for name, drawing in drawn.items()}


def _chat(messages: Sequence[dict[str, str]]) -> Chat:
    return Chat.of(messages, date=DATE, reasoning_effort="medium")


def _messages(tokenizer: Tokenizer) -> list[list[texts.Run]]:
    """A chat by message, as control tokens and the texts between them."""
    control = {id: name for name, id in tokenizer.control.items()}
    [(prompt, reply)] = HarmonyFormat(tokenizer).render_turns(_chat(FIRST))
    messages: list[list[texts.Run]] = []
    for ids, generated in ((prompt, False), (reply, True)):
        for is_control, run in groupby(ids, control.__contains__):
            for part in ([id] for id in run) if is_control else [list(run)]:
                text = tokenizer.decode(part) if not is_control else control[part[0]]
                if text == ControlToken.START:
                    messages.append([])
                messages[-1].append(texts.Run(text, is_control, generated))
    return messages


def _pages(format: HarmonyFormat) -> list[texts.PagedRow]:
    """Two turns of a chat and the first of another, one after the other through one cache."""
    titles = "first turn", "its second turn", "another chat"
    turns = [*format.render_turns(_chat([*FIRST, *_THEN])), *format.render_turns(_chat(_OTHER))]
    kind = LayerKind(window=None, num_kv_heads=1, head_dim=1)
    cache = KVCache({kind: 64}, CacheLimits(_PAGE, chunk=512, max_texts=1, context_length=512))
    rows = []
    for title, (prompt, reply) in zip(titles, turns, strict=True):
        text = PagedText(list(prompt), len(prompt))
        reused = cache.match(text)
        cache.open(text, reused)
        text.tokens += reply
        assert cache.grow(text, len(text.tokens))
        cache.commit(text, len(text.tokens))
        detail = f"prompt {len(prompt)} tokens, {reused} cached; reply {len(reply)}"
        rows.append(texts.PagedRow(title, detail, list(text.pages[0]), reused // _PAGE))
        cache.close(text)
    return rows


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m book.pictures FOLDER")
    for name, drawing in pictures().items():
        (Path(sys.argv[1]) / name).write_text(drawing, encoding="utf-8")


if __name__ == "__main__":
    main()
