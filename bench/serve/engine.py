"""The engine without a server, in a process of its own: the same prompts, the same numbers of
sequences together. Prints tokens per second by the number of sequences, as JSON.

    python -m bench.serve.engine FOLDER '{"loads": [{"clients": 16}], "seed": 0}'
"""

from __future__ import annotations

import json
import random
import sys
import time

import ossia
from bench.serve.speed import Load


def main() -> None:
    folder, asked = sys.argv[1], json.loads(sys.argv[2])
    with ossia.LLM(folder) as llm:
        loads = [Load(**load) for load in asked["loads"]]
        _run(llm, Load(1, requests=1, tokens=8), asked["seed"] - 1)  # records the step
        print(json.dumps({load.clients: _run(llm, load, asked["seed"]) for load in loads}))


def _run(llm: ossia.LLM, load: Load, seed: int) -> float:
    draws = [random.Random(f"{seed} {n}") for n in range(load.clients)]
    size = llm.config.vocab_size
    began = time.perf_counter()
    for _ in range(load.requests):
        prompts = [[draw.randrange(size) for _ in range(load.prompt)] for draw in draws]
        llm.generate(prompts, max_tokens=load.tokens, temperature=0.0, ignore_eos=True)
    return load.clients * load.requests * load.tokens / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
