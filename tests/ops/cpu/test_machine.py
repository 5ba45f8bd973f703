"""The thread pool, and how the backend and its instruction set are chosen."""

import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ossia.ops import REFERENCE, select
from tests.ops.cpu.common import cpu, native, normal  # which skips where there are none

_native = pytest.importorskip("ossia.ops._native")


def test_callers_in_many_threads_take_turns(form):
    x, weight = normal(4, 200), normal(3000, 200, seed=1)
    expected = form(native.linear, x, weight)
    with ThreadPoolExecutor(4) as threads:
        results = threads.map(lambda _: native.linear(x, weight), range(200))
        assert all(torch.allclose(result, expected, rtol=1e-4, atol=1e-4) for result in results)


def test_threads_that_slept_or_are_late_or_are_many_change_no_bit():
    x, weight = normal(3, 300, dtype=torch.bfloat16), normal(4000, 300, dtype=torch.bfloat16)
    results = []
    for threads in (1, 2, 13):
        with cpu.using(cpu.Machine(threads, "")):
            for _ in range(20):
                results.append(native.linear(x, weight))
                time.sleep(0.001)  # longer than they wait awake
    assert all(torch.equal(result, results[0]) for result in results)


FORK = """
import os, sys, threading
import torch
torch.set_num_threads(1)  # torch's own threads do not survive a fork, and are not what is tested
from ossia.ops import cpu
from ossia.ops._native import Recording

torch.manual_seed(0)
machine, recording = cpu.Machine(3, ""), Recording()
machine.pin()
x, weight = torch.randn(4, 200), torch.randn(3000, 200)

def check(depth):
    for _ in range(3):
        child = os.fork()
        if child == 0:
            recorded.zero_()
            recording.run()
            again = cpu.CPU.linear(x, weight)
            right = torch.equal(recorded, expected) and torch.equal(again, expected)
            if right and depth:
                check(depth - 1)
            sys.exit(0 if right and len(os.listdir("/proc/self/task")) == 3 else 1)
        assert os.waitpid(child, 0)[1] == 0

def work():
    while busy:
        cpu.CPU.linear(x, weight)

with cpu.using(machine), torch.inference_mode():
    recording.begin()
    recorded = cpu.CPU.linear(x, weight)
    recording.end()
    expected, busy = recorded.clone(), True
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    check(1)
    busy = False
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at threads in /proc")
def test_a_forked_child_starts_workers_of_its_own_and_replays_what_its_parent_recorded():
    run = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr


PIN = """
import os, sys
from importlib.util import module_from_spec, spec_from_file_location

def allowed():
    return {int(task): os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")}

spec = spec_from_file_location("_native", sys.argv[1])
native = module_from_spec(spec)
spec.loader.exec_module(native)
machine, before = native.Machine(3, ""), allowed()
machine.pin()
after = allowed()
moved = [task for task in after if after[task] != before.get(task)]
assert os.getpid() not in moved
if len(before[os.getpid()]) > 1:
    assert len(moved) == 2
assert all(len(after[task]) == 1 for task in moved)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says where threads may run")
def test_pinning_leaves_the_caller_where_it_was():
    """In a process without other threads, which come and go."""
    run = subprocess.run(
        [sys.executable, "-c", PIN, _native.__file__], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_the_native_backend_is_chosen_on_a_cpu_and_another_by_name():
    assert select("auto", "cpu") is cpu.CPU
    assert select("reference", "cpu") is REFERENCE


def test_what_is_not_used_though_it_is_there_is_said(monkeypatch, caplog):
    remark = "AMX is not used: the system does not save its tiles"
    machine = SimpleNamespace(isa="avx512", threads=2, remark=remark)
    monkeypatch.setattr(cpu, "machine", lambda: machine)
    assert select("cpu") is cpu.CPU
    assert remark in caplog.messages
    assert cpu.Machine(1, "portable").remark == ""


def test_an_instruction_set_the_processor_lacks_is_named():
    code = "from ossia.ops import select; select()"
    environment = {**os.environ, "OSSIA_CPU_ISA": "sse9"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "OSSIA_CPU_ISA=sse9: this processor runs portable" in run.stderr
    assert "emulated" not in run.stderr


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads Linux's /proc")
def test_pairs_are_multiplied_on_amd_alone_unless_asked_for():
    """By the maker, not by timing: a run that is resumed must get the same kernels."""
    about = Path("/proc/cpuinfo").read_text()
    with_pairs = "AuthenticAMD" in about and "avx512_bf16" in about and "avx512_vnni" in about
    assert (cpu.Machine(1, "").isa == "avx512+bf16") == with_pairs


@pytest.mark.skipif(
    "OSSIA_TEST_BUILD" not in os.environ or platform.machine() != "x86_64",
    reason="not by `make test` on an x86-64",
)
def test_the_build_for_tests_emulates_a_matrix_unit():
    """So that none of its tests is skipped unnoticed."""
    try:
        cpu.Machine(1, "avx512")
    except ValueError:
        pytest.skip("the emulated unit needs AVX-512 around it")
    assert cpu.Machine(1, "amx-emulated").isa == "amx-emulated"
