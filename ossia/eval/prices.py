"""What tokens cost, from a file of prices, and a limit that a run never exceeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ossia.errors import OssiaError
from ossia.eval import answers
from ossia.eval.answers import Usage
from ossia.eval.endpoint import is_endpoint
from ossia.eval.scoring import judge
from ossia.eval.tasks import Question, Scorer
from ossia.system.files import read_json

_TEMPLATE_TOKENS = 2000  # more than any chat template adds to a conversation


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens."""

    input: float = 0.0
    output: float = 0.0
    cached_input: float | None = None  # None is `input`

    def of(self, usage: Usage) -> float:
        """The cost of some tokens in US dollars."""
        cached = self.input if self.cached_input is None else self.cached_input
        fresh = usage.prompt - usage.cached
        return (fresh * self.input + usage.cached * cached + usage.completion * self.output) / 1e6


class Prices:
    """Prices by a model's whole name, or by what follows # in that of an endpoint; models of this
    machine cost nothing.
    """

    def __init__(self, prices: Mapping[str, Price]) -> None:
        self._prices = dict(prices)

    @classmethod
    def read(cls, file: Path) -> Prices:
        """A JSON object of {"input": , "output": , "cached_input": } by name. Raises OssiaError."""
        found = {}
        for name, price in read_json(file).items():
            wrong = not isinstance(price, dict) or not {"input", "output"} <= price.keys()
            if wrong or not price.keys() <= {"input", "output", "cached_input"}:
                raise OssiaError(
                    f"{file}: {name} needs input and output, and may have cached_input, in US "
                    "dollars per million tokens"
                )
            for key, value in price.items():
                if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
                    raise OssiaError(f"{file}: {name}.{key} must be a number from 0, not {value!r}")
            found[name] = Price(**price)
        return cls(found)

    def find(self, model: str) -> Price | None:
        """The price of a model; None if it is unknown."""
        if not is_endpoint(model):
            return Price()
        return self._prices.get(model, self._prices.get(model.partition("#")[2]))

    def cost(self, model: str, usage: Usage) -> float | None:
        """US dollars; None if the price is unknown."""
        price = self.find(model)
        return None if price is None else price.of(usage)

    def need(self, models: list[str]) -> None:
        """Raise OssiaError for a model without a price."""
        for model in models:
            if self.find(model) is None:
                raise OssiaError(f"--max-cost: --prices has no price of {model}")


@dataclass
class Budget:
    """What may be spent, what was, and what the questions that are being answered may cost at most.

    A question is only asked if its longest possible reply can still be paid, so that the limit
    holds whatever the model writes. limit: US dollars; None is no limit.
    """

    limit: float | None
    prices: Prices
    max_tokens: int | None
    judge: str | None = None
    spent: float = 0.0
    reserved: float = 0.0

    def reserve(self, model: str, question: Question) -> float | None:
        """Set aside the most that a reply can cost; None if there is not so much left."""
        most = self.most(model, question)
        if self.limit is not None and self.spent + self.reserved + most > self.limit:
            return None
        self.reserved += most
        return most

    def settle(self, reserved: float, cost: float | None) -> None:
        """What was set aside is free again, and the true cost is spent."""
        self.reserved -= reserved
        self.spent += cost or 0.0

    def most(self, model: str, question: Question) -> float:
        """The most that one reply, and the judge's after it, can cost."""
        if self.limit is None:
            return 0.0
        assert self.max_tokens is not None, "a limit needs the longest reply"
        price = self.prices.find(model) or Price()
        rounds = answers.MOST_CALLS + 1 if question.tools else 1
        # A token is at least a byte, also of the results and replies that are sent back.
        said = [*question.messages, *question.tools, *(vars(r) for r in question.results)]
        read = len(json.dumps(said, ensure_ascii=False).encode()) + _TEMPLATE_TOKENS
        read += (rounds - 1) * 2 * (self.max_tokens + _TEMPLATE_TOKENS)
        cost = price.of(Usage(rounds * read, 0, rounds * self.max_tokens))
        if question.scorer is Scorer.JUDGE and self.judge is not None:
            price = self.prices.find(self.judge) or Price()
            # A reply's tokens may be many bytes each, as those of another vocabulary.
            cost += price.of(Usage(read + 16 * self.max_tokens, 0, judge.MAX_TOKENS))
        return cost
