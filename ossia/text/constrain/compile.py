"""Constraints from grammars, by llguidance: compiled once, in bounded time and memory.

A grammar comes from a stranger. llguidance bounds the work of compiling and of each mask; what it
does not bound is bounded before (`structure`, `schema`) or here: the time, and the recursion, which
gets a stack that is deep enough for the largest grammar that is let in.
"""

from __future__ import annotations

import ctypes
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ossia.errors import Busy, OssiaError, brief
from ossia.text.constrain.grammar import Grammar, literal
from ossia.text.constrain.schema import place_of
from ossia.text.constrain.structure import Kind, Structure
from ossia.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

T = TypeVar("T")

_SECONDS = 30.0  # to compile one grammar, and to wait for another's
_STACK = 64 << 20
_KEPT = 32  # compiled grammars

# The most that one mask may cost are some 30 ms. A state of the lexer takes 1 to 2 kB.
_LIMITS = {"max_lexer_states": 20_000, "max_items_in_row": 10_000, "verbose_errors": False}

# Escapes that JSON does not need would be a second spelling of a property's name, by which a text
# could repeat one that it has. White space in a row is bounded, because models can get stuck in it.
_JSON = {"json_allowed_escapes": 'nrbtf\\"', "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,64}"}


class Grammars:
    """Makes constraints on replies from a vocabulary. vocab_size: the model's, which may have more
    ids than the tokenizer. Any thread may use it.

    llguidance's index of the vocabulary is made when it is first needed, which takes a second for
    200,000 tokens; the latest grammars are kept as they were compiled.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._turn = threading.Lock()  # one grammar is compiled at a time
        self._turn_of_index = threading.Lock()
        self._made: LLTokenizer | None = None
        self._turn_of_kept = threading.Lock()
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()

    def constraint(self, grammar: Grammar) -> Callable[[], GrammarConstraint]:
        """What makes constraints that hold a reply to a grammar, each in its initial state.

        Raises OssiaError that names the parameter of a structure that cannot be compiled, or that
        no text has.
        """
        ends = frozenset(id for id in grammar.ends if id < self._vocab_size)
        if not ends:
            raise OssiaError("this model has no id that ends a text, so no structure can be held")
        key = _written(grammar.lark, grammar.parts)
        matcher = self._kept.get(key)
        if matcher is None:
            index = self._index()
            matcher = self._in_turn(lambda: self._compile(grammar, key, index))
        with self._turn_of_kept:
            self._kept[key] = matcher
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return lambda: GrammarConstraint(matcher.deep_copy(), ends)

    def _compile(self, grammar: Grammar, key: str, index: LLTokenizer) -> LLMatcher:
        for name, structure in grammar.parts.items():  # alone, so that its own errors are known
            text = _written(f"start: @{name} {grammar.end}", {name: structure})
            alone = _matcher(text, index)
            first = alone.deep_copy()
            if not first.is_error():
                first.compute_bitmask()
            if first.is_error():
                raise OssiaError(_explained(structure, first.get_error()))
            if text == key:
                return alone
        matcher = _matcher(key, index)
        if matcher.is_error():
            raise OssiaError(
                f"the reply's grammar cannot be compiled: {brief(matcher.get_error())}"
            )
        return matcher

    def _index(self) -> LLTokenizer:
        with self._turn_of_index:
            index = self._made
            if index is None:
                make = _llguidance().LLTokenizer
                words = _Vocabulary(self._tokenizer, self._vocab_size)
                index = self._made = make(words, slices=make.json_slices())
            return index

    def _in_turn(self, work: Callable[[], T]) -> T:
        """The result of work in a thread with a deep stack, after that of others. Raises Busy if
        theirs takes too long.
        """
        if not self._turn.acquire(timeout=_SECONDS):
            raise Busy("others' grammars are being compiled; try again")
        done: list[T | BaseException] = []

        def run() -> None:
            try:
                done.append(work())
            except BaseException as error:
                done.append(error)
            finally:
                self._turn.release()

        _start(run).join(_SECONDS)
        if not done:
            raise OssiaError("the grammar of the reply takes too long to compile; make it simpler")
        if isinstance(done[0], BaseException):
            raise done[0]
        return done[0]


def _matcher(grammar: str, index: LLTokenizer) -> LLMatcher:
    library = _llguidance()
    limits = library.LLParserLimits(**_LIMITS)
    return library.LLMatcher(index, grammar, log_level=0, limits=limits)


_stack_lock = threading.Lock()


def _start(run: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=run, name="ossia-grammar", daemon=True)
    with _stack_lock:
        before = threading.stack_size(_STACK)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    return thread


class GrammarConstraint:
    """The engine's Constraint over a matcher, which it owns."""

    def __init__(self, matcher: LLMatcher, ends: frozenset[int]) -> None:
        self._matcher, self._ends = matcher, ends

    def mask(self, bits: memoryview) -> None:
        """Write the mask in place. Raises OssiaError once the grammar is beyond its limits."""
        if self._matcher.is_stopped():
            self._check()
            for id in self._ends:
                bits[id // 32] |= 1 << id % 32
            return
        address = ctypes.addressof(ctypes.c_char.from_buffer(bits))
        self._matcher.unsafe_compute_mask_ptr(address, bits.nbytes)
        self._check()

    def accept(self, ids: Sequence[int]) -> None:
        """Advance by ids of the output. Raises OssiaError for one that the grammar forbids."""
        for id in ids:
            if self._matcher.is_stopped() and id in self._ends:
                continue
            self._matcher.consume_token(id)
            self._check()

    def copy(self) -> GrammarConstraint:
        """An independent constraint in the same state."""
        return GrammarConstraint(self._matcher.deep_copy(), self._ends)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise OssiaError(brief(self._matcher.get_error()))


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise OssiaError(
            "structured output needs the package llguidance: pip install 'ossia[structured]'"
        ) from error
    return llguidance


class _Vocabulary:
    """What llguidance reads of a tokenizer: bytes by id, and the ids of control tokens, which text
    never matches.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(id) for id in range(size)]
        self.special_token_ids = [id for id in tokenizer.control.values() if id < size]
        self.eos_token_id = min(self.special_token_ids, default=size - 1)

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


def _written(lark: str, parts: Mapping[str, Structure]) -> str:
    """A grammar as llguidance reads it. Without no_forcing it would choose the tokens of texts that
    have no alternative, where the model may prefer others.
    """
    reply = {"name": "reply", "lark_grammar": f'%llguidance {{"no_forcing": true}}\n{lark}'}
    named = [{"name": name, **_part(structure)} for name, structure in parts.items()]
    return json.dumps({"grammars": [reply, *named]})


def _part(structure: Structure) -> dict[str, Any]:
    match structure.kind:
        case Kind.JSON:
            options = {**_JSON, "lenient": not structure.strict}
            return {"json_schema": {**structure.value, "x-guidance": options}}
        case Kind.REGEX:
            return {"lark_grammar": f"start: {_regex(structure.value)}"}
        case Kind.CHOICE:
            return {"lark_grammar": f"start: {_one_of(structure.value)}"}
        case Kind.GRAMMAR:
            return {"lark_grammar": structure.value}


def _regex(pattern: str) -> str:
    return f"/{_llguidance().regex_to_lark(pattern)}/" if pattern else '""'


def _one_of(texts: Iterable[str]) -> str:
    return " | ".join(map(literal, texts))


def _explained(structure: Structure, error: str) -> str:
    """llguidance's error, with the place in a schema of a keyword that it cannot enforce."""
    keywords = re.match(r'Unimplemented keys: \["([^"]+)"', error)
    if keywords is not None:
        place = place_of(keywords[1], structure.value, structure.where)
        return f"{place}: the keyword {keywords[1]} cannot be enforced"
    if error.startswith("oneOf"):
        place = place_of("oneOf", structure.value, structure.where)
        return (
            f"{place}: oneOf cannot be enforced unless its schemas exclude one another; use anyOf"
        )
    return f"{structure.where}: cannot be compiled: {brief(error)}"
