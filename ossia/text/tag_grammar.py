"""Replies with tagged parts as a grammar: what `tags` reads, held to what a chat asks for."""

from __future__ import annotations

import json
from collections.abc import Collection

from ossia.errors import OssiaError
from ossia.text.chat import Callee, Chat
from ossia.text.constrain.grammar import Grammar, ids, literal
from ossia.text.tags import CALL, END_CALL, END_THINK, THINK
from ossia.text.tokenizer import Tokenizer
from ossia.text.xml_calls import call_rule, text_rule


class TagGrammar:
    """Writes the grammar of replies that end with an id of `ends`. thinks: whether the model can
    begin with reasoning; begun: whether the prompt has begun it. xml: its calls are in tags.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        ends: Collection[int],
        *,
        thinks: bool = False,
        begun: bool = False,
        xml: bool = False,
    ) -> None:
        self._tag = tokenizer.control
        self._grammar = Grammar(frozenset(ends))
        self._thinks, self._begun, self._xml = thinks, begun, xml

    def of(self, chat: Chat) -> Grammar:
        """The replies that a chat asks for: reasoning, if the model can, then the answer or calls.

        Text beside calls is free where the answer is; there is none where calls are forced. Raises
        OssiaError for calls that the model has no form for.
        """
        grammar = self._grammar
        grammar.rule("start", f"{self._reasoning()} body {grammar.end}".strip())
        grammar.rule("GAP", r"/\n{0,2}/")
        calls = self._calls(chat)
        if chat.must_call:
            grammar.rule("body", calls)
        elif chat.structure is not None:
            grammar.rule("body", grammar.text_of(chat.structure), *([calls] if calls else []))
        elif calls:
            text = text_rule(grammar) if self._xml else grammar.text_of(None)
            more = f"({text} call)*" if chat.parallel_tool_calls else ""
            grammar.rule("body", text, f"{text} call {more} GAP")
        else:
            grammar.rule("body", grammar.text_of(None))
        return grammar

    def _reasoning(self) -> str:
        if self._begun:
            return f"{self._grammar.text_of(None)} {self._id(END_THINK)} GAP"
        if self._thinks and THINK in self._tag and END_THINK in self._tag:
            thought = f"{self._id(THINK)} {self._grammar.text_of(None)} {self._id(END_THINK)} GAP"
            return f"{self._grammar.rule('thought', thought)}?"
        return ""

    def _calls(self, chat: Chat) -> str:
        """A reference to one call or several; '' if none is allowed."""
        callees = chat.callees
        if not callees:
            return ""
        if CALL not in self._tag or END_CALL not in self._tag:
            raise OssiaError(
                f"{callees[0].where}: this model's chat format has no calls to enforce"
            )
        bodies = [self._body(n, callee) for n, callee in enumerate(callees)]
        self._grammar.rule("called", *bodies)
        self._grammar.rule("call", f"{self._id(CALL)} called {self._id(END_CALL)}")
        return "call (GAP call)*" if chat.parallel_tool_calls else "call"

    def _body(self, n: int, callee: Callee) -> str:
        if self._xml:
            return call_rule(self._grammar, n, callee)
        name = json.dumps(callee.name, ensure_ascii=False)
        head = literal(f'\n{{"name": {name}, "arguments": ')
        arguments = self._grammar.text_of(callee.arguments)
        return self._grammar.rule(f"call_{n}", f"{head} {arguments} {literal(chr(125) + chr(10))}")

    def _id(self, tag: str) -> str:
        return ids([self._tag[tag]])
