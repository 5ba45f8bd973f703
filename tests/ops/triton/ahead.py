"""Compiles, without a card, every kernel that the operations of `true_shapes` and
`training_shapes` launch.

    python -m tests.ops.triton.ahead 90 [name]

prints one JSON line per kernel for compute capability 9.0: barriers of a block, registers, bytes
that spilled to the stack, and shared memory. `name` restricts it to the operations whose names
contain it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ossia.ops.triton import TRITON, recording
from ossia.ops.triton.launch import CARDS, Launch
from tests.ops.triton import training_shapes, true_shapes
from tests.ops.triton.true_shapes import Inputs

CASES = true_shapes.CASES | training_shapes.CASES


class _NoCard:
    """Triton's driver where there is no card: it only names the target."""

    def __init__(self, architecture: int) -> None:
        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compile_all(architecture: int, part: str) -> None:
    driver.set_active(_NoCard(architecture))  # type: ignore[arg-type]
    seen: set[str] = set()
    for name, case in CASES.items():
        if part not in name:
            continue
        with recording(CARDS[architecture]) as launches, torch.no_grad():
            case(TRITON, Inputs(torch.device("meta")))
        assert launches, f"{name} launches no kernel"
        for found in launches:
            compiled = found.kernel.warmup(*found.arguments, grid=found.grid, **found.options)
            if compiled.hash not in seen:
                seen.add(compiled.hash)
                print(json.dumps({"case": name, **_usage(found, compiled)}), flush=True)


def _usage(found: Launch, compiled: Any) -> dict[str, Any]:
    """The barriers of a compiled kernel, and what ptxas says of its registers and spills."""
    ptx = compiled.asm["ptx"]
    match = re.search(r"^\.target (sm_(\d+)\w*)", ptx, re.MULTILINE)
    assert match is not None
    tool = "ptxas-blackwell" if int(match[2]) >= 100 else "ptxas"
    folder = Path(triton.backends.nvidia.__file__).parent / "bin"
    with tempfile.NamedTemporaryFile(suffix=".ptx") as file:
        file.write(ptx.encode())
        file.flush()
        command = [folder / tool, "-v", f"--gpu-name={match[1]}", file.name, "-o", "/dev/null"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", text)
    spills = re.search(r"(\d+) bytes spill stores", text)
    assert registers is not None
    assert spills is not None
    return {
        "kernel": found.kernel.__name__,
        "barriers": len(re.findall(r"\bbar(?:rier)?\.sync\b", ptx)),
        "registers": int(registers[1]),
        "spilled": int(spills[1]),
        "shared": compiled.metadata.shared,
    }


if __name__ == "__main__":
    compile_all(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
