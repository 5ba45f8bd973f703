"""One part, in a process of its own: `python -m ossia.measure.gpu`, started by `suite.py`.

Arguments: the part as JSON, the suite's name, the device, the seconds that are left, and the folder
of the checkpoint. Prints lines of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ossia.measure.gpu import limits, peer, served, trained
from ossia.measure.gpu.cases import SUITES, Side, Suite
from ossia.measure.gpu.parts import Kind, Part, Teller, Told, told


def main(arguments: list[str]) -> None:
    """Measure a part and print its figures."""
    part, suite, device, left, folder = arguments
    record = json.loads(part)
    run(
        Part(Kind(record["kind"]), record["model"], Side(record["side"])),
        SUITES[suite],
        torch.device(device),
        time.monotonic() + float(left),
        Path(folder),
    )


def run(part: Part, suite: Suite, device: torch.device, until: float, folder: Path) -> None:
    """Measure a part until a time of `time.monotonic`."""
    if part.kind is Kind.FILES:
        served.write(suite.model(part.model), folder)
        return
    if part.kind is Kind.LIMITS:
        _print(limits.measure(device, suite))
        return

    def tell(found: Told) -> None:
        _print(found.to_json())

    with told(Teller(part, suite, device, until, tell, folder)) as teller:
        if part.kind is Kind.SERVED:
            work = peer.measure_served if part.side is Side.PEER else served.measure
            work(suite.model(part.model), teller)
        else:
            work = peer.measure_trained if part.side is Side.PEER else trained.measure
            work(suite.training(part.model), teller)


def _print(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
