"""Kernels at true shapes: compiled for each architecture without a card, and run where one is."""

import json
import os
import subprocess
import sys

import pytest
import torch

from ossia.ops import REFERENCE
from ossia.ops.triton import TRITON
from ossia.ops.triton.launch import CARDS
from tests.ops.triton import ahead
from tests.ops.triton.common import relative_error
from tests.ops.triton.true_shapes import CASES, Inputs


@pytest.mark.parametrize("architecture", CARDS)
def test_kernels_compile_without_spills(architecture):
    command = [sys.executable, "-m", "tests.ops.triton.ahead", str(architecture)]
    compiled = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=compiled)
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["case"] for kernel in kernels} <= ahead.CASES.keys()
    assert kernels
    assert [kernel for kernel in kernels if kernel["spilled"]] == []
    # Slopes overwrite the logits, after every warp has read its target's.
    losses = [kernel for kernel in kernels if kernel["kernel"] == "_softmax_losses"]
    plain, *in_place = [kernel["barriers"] for kernel in losses]
    assert in_place
    assert min(in_place) > plain


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_kernels_at_true_shapes(name):
    device = torch.device("cuda")
    with torch.no_grad():
        found = CASES[name](TRITON, Inputs(device))
        expected = CASES[name](REFERENCE, Inputs(device))
    assert relative_error(found, expected) < 2**-6
