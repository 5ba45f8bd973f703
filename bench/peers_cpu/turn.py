"""One program measured once, in a process of its own: `python -m bench.peers_cpu.turn JSON`.

Prints one line of JSON: a `Measurement`, or {"reason": ...} for a program that cannot run.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.peers_cpu.peers import LlamaCpp, Transformers
from ossia import checkpoint
from ossia.compare.counts import count
from ossia.measure import memory
from ossia.measure.machine import BUFFER_BYTES, Bandwidth
from ossia.measure.speed import SHORT_PROMPT, Model, measure


def main() -> None:
    ...
