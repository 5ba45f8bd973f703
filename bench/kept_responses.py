"""Kills a process 50 times, at random moments while it keeps responses: none that was kept is lost.

    python -m bench.kept_responses [--rounds N]

After each kill the file is opened again, and every response that any of the processes had named is
read. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

from ossia.serve.responses.store import ResponseStore
from tests.serve.test_store import killed_writer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    chance, named = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "responses.sqlite"
        for n in range(rounds):
            named += killed_writer(file, str(n), chance.random() / 2)
            store = ResponseStore(file)
            lost = [id for id in named[-4500:] if store.get(id) is None]  # two rows each, of 10,000
            store.close()
            if lost:
                raise SystemExit(f"lost after kill {n + 1}: {', '.join(lost[:9])}")
    print(json.dumps({"kills": rounds, "responses": len(named), "lost": 0}))


if __name__ == "__main__":
    main()
