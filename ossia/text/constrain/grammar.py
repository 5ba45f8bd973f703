"""Grammars of replies in llguidance's form of Lark, written by the chat formats.

The notation: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from ossia.text.constrain.structure import Structure

# Text without control tokens, of valid UTF-8, as far as the next control token.
TEXT = "TEXT"


@dataclass
class Grammar:
    """The rules of a reply, the first of which is `start`. ends: the ids that end the reply, which
    stand in the rules too; once it is complete no others are allowed.

    Texts of a structure are grammars of their own, with rules that the reply's do not see.
    """

    ends: frozenset[int]
    rules: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Structure] = field(default_factory=dict)

    def rule(self, name: str, *alternatives: str) -> str:
        """Add a rule of one or several alternatives; its name, to use in others."""
        self.rules[name] = " | ".join(alternatives)
        return name

    def text_of(self, structure: Structure | None) -> str:
        """A reference to a text of that structure; of any text if None."""
        if structure is None:
            self.rules[TEXT] = r"/(?s:.*)/"
            return TEXT
        name = next((n for n, part in self.parts.items() if part is structure), None)
        if name is None:
            name = f"part_{len(self.parts)}"
            self.parts[name] = structure
        return f"@{name}"

    @property
    def end(self) -> str:
        """Any id that ends the reply."""
        return ids(self.ends)

    @property
    def lark(self) -> str:
        """The rules as Lark, without the parts."""
        return "\n".join(f"{name}: {body}" for name, body in self.rules.items())


def ids(tokens: Iterable[int]) -> str:
    """One of these tokens, by id."""
    return f"<[{','.join(map(str, sorted(tokens)))}]>"


def literal(text: str) -> str:
    """This text in ordinary tokens."""
    return json.dumps(text, ensure_ascii=False)


def plain_grammar(structure: Structure | None, ends: frozenset[int]) -> Grammar:
    """A text of that structure and nothing else; any text if None."""
    grammar = Grammar(ends)
    grammar.rule("start", f"{grammar.text_of(structure)} {grammar.end}")
    return grammar
