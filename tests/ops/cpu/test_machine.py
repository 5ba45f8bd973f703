"""The thread pool, and how the backend and its instruction set are chosen."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

from ossia.ops import REFERENCE, select
from tests.ops.cpu.common import cpu, normal


def test_callers_in_many_threads_take_turns(form):
    x, weight = normal(4, 200), normal(300, 200, seed=1)
    expected = form(cpu.linear, x, weight)
    with ThreadPoolExecutor(4) as threads:
        results = threads.map(lambda _: cpu.linear(x, weight), range(200))
        assert all(torch.allclose(result, expected, rtol=1e-4, atol=1e-4) for result in results)


def test_the_native_backend_is_chosen_on_a_cpu_and_another_by_name():
    assert select("auto", "cpu") is cpu.CPU
    assert select("reference", "cpu") is REFERENCE


def test_an_instruction_set_the_processor_lacks_is_named():
    code = "from ossia.ops import select; select()"
    environment = {**os.environ, "OSSIA_CPU_ISA": "sse9"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "OSSIA_CPU_ISA=sse9: this processor runs portable" in run.stderr
