"""Decoding with speculation beside decoding without, of the same requests.

    python bench/speculation.py [--model PATH_OR_HUB_NAME] [--draft PATH_OR_HUB_NAME] [--batch 1]

"repeating" asks for the greedy continuation of a text that repeats itself, which n-grams can draft;
"random" for one sampled at temperature 3, where nothing does. Each with every way of drafting, in
turns that alternate; prompts are not timed. Prints the median tokens per second, their ratio to
plain decoding and the share of drafted tokens that were accepted, as a JSON line for each. Fails if
a token differs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from ossia import checkpoint, text
from ossia.engine import Engine, Request, SamplingParams, TokenOutput
from ossia.errors import OssiaError
from ossia.measure.machine import describe
from ossia.model import Decoder
from ossia.options import EngineOptions, LoadOptions

SNIPPET = """\
class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def __repr__(self):
        return f"Point({self.x}, {self.y})"

"""
CASES = {  # how often the text stands in the prompt, and the temperature
    "repeating": (6, 0.0),
    "random": (1, 3.0),
}


def decode(engine: Engine, requests: list[Request]) -> tuple[float, list[list[int]]]:
    """Tokens per second once all have their first, and the tokens of each request."""
    found: dict[int, list[int]] = {engine.add(request): [] for request in requests}
    start, before = 0.0, 0
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output, TokenOutput), output
            found[output.request_id].append(output.token)
        if not start and all(found.values()):
            start, before = time.perf_counter(), sum(map(len, found.values()))
    count = sum(map(len, found.values())) - before
    return count / (time.perf_counter() - start), [*found.values()]


def engines(model: Decoder, draft: Decoder | None, most: int) -> dict[str, Engine]:
    """One for each way of drafting."""

    def engine(speculate: str | None, draft: Decoder | None = None) -> Engine:
        options = EngineOptions(
            kv_memory="512MiB", prefix_cache=False, speculate=speculate, speculate_tokens=most
        )
        return Engine(model, options, draft=draft)

    made = {"plain": engine(None), "ngram": engine("ngram")}
    return made if draft is None else made | {"draft": engine(None, draft)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="default: the model inside the package")
    parser.add_argument("--draft", help="a smaller model of the same vocabulary")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--speculate-tokens", type=int, default=EngineOptions.speculate_tokens)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    for name in ("batch", "tokens", "turns"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    try:
        folder = checkpoint.find(options.model)
        tokenizer = text.load_tokenizer(checkpoint.text_folder(folder))
        model = checkpoint.load(folder, LoadOptions())
        draft = options.draft and checkpoint.load(checkpoint.find(options.draft), LoadOptions())
    except OssiaError as error:
        parser.error(str(error))
    machine = describe()
    for case, (repeats, temperature) in CASES.items():
        prompt = tokenizer.encode(SNIPPET * repeats)
        requests = [
            Request(
                prompt,
                SamplingParams(temperature=temperature, max_tokens=options.tokens, seed=n),
            )
            for n in range(options.batch)
        ]
        ways = engines(model, draft, options.speculate_tokens)
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        expected = None
        for turn in range(options.turns + 1):
            for way, engine in ways.items():
                speed, tokens = decode(engine, requests)
                expected = expected or tokens
                assert tokens == expected, f"{way} changed a token"
                if turn:
                    speeds[way].append(speed)
        medians = {way: statistics.median(found) for way, found in speeds.items()}
        stats = {way: engine.stats() for way, engine in ways.items()}
        print(
            json.dumps(
                {
                    "case": case,
                    "model": folder.name,
                    "batch": options.batch,
                    "kernels": machine.kernels,
                    "threads": torch.get_num_threads(),
                    "tokens per second": {way: round(median, 1) for way, median in medians.items()},
                    "ratio": {way: round(m / medians["plain"], 2) for way, m in medians.items()},
                    "accepted": {
                        way: round(found.accepted_tokens / found.drafted_tokens, 2)
                        for way, found in stats.items()
                        if found.drafted_tokens
                    },
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
