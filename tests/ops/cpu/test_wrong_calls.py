"""Wrong tensors of every kind at every native operation: a result or one clear error, whatever else
is in memory, and no process that dies. OSSIA_FUZZ_CALLS says how many calls are tried.
"""

import os
import subprocess
import sys

import pytest

from tests.ops.cpu.common import cpu  # which skips where there are no native kernels
from tests.ops.cpu.wrong_calls import Calls, made

CALLS = int(os.environ.get("OSSIA_FUZZ_CALLS", "1500"))
REFUSED = (ValueError, IndexError, TypeError)


@pytest.mark.parametrize("machine", [0, 1, 2, 3])
def test_right_calls_are_taken(form, machine):
    calls, names = Calls(machine), set()
    for _ in range(60):
        name, arguments = calls.right()
        getattr(form.machines[machine % len(form.machines)], name)(*made(arguments))
        names.add(name)
    assert len(names) > 10


@pytest.mark.parametrize("machine", [-1, -2])
def test_wrong_calls_touch_no_memory_but_their_tensors(form, machine):
    """Behind each tensor's last byte, or before its first, is memory that cannot be touched."""
    calls, outcomes = Calls(machine + 10), {"taken": 0, "refused": 0}
    for _ in range(CALLS):
        name, arguments = calls.wrong()
        try:
            getattr(form.machines[machine], name)(*made(arguments))
        except REFUSED:
            outcomes["refused"] += 1
        else:
            outcomes["taken"] += 1
    assert min(outcomes.values()) > CALLS // 10, outcomes


HERE = """
import os, sys
import torch
from torch._subclasses import FakeTensorMode
from tests.ops.cpu.wrong_calls import Calls, made
from ossia.ops._native import Machine

def emptied(calls, tensor):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor

def another(calls, tensor):
    kept.append(tensor.clone())
    return calls.draw.choice(kept[-9:])

def viewed(calls, tensor):
    memory = calls.draw.choice(kept[-9:] or [tensor])
    size = tensor.nbytes
    if memory.nbytes < size or not memory.is_contiguous() or not memory.data_ptr():
        return tensor
    return memory.view(-1).view(torch.uint8)[:size].view(tensor.dtype).view(tensor.shape)

def shifted(calls, tensor):  # to an address that no type is aligned to
    if not tensor.numel():
        return tensor
    data = tensor.contiguous().view(-1).view(torch.uint8)
    memory = bytearray(3 + data.numel())
    torch.frombuffer(memory, dtype=torch.uint8, offset=3).copy_(data)
    return torch.frombuffer(memory, dtype=tensor.dtype, offset=3).view(tensor.shape)

def odd(calls, tensor):
    return calls.draw.choice([
        lambda: tensor.to("meta"),
        lambda: tensor.cfloat(),
        lambda: tensor.to_sparse(),
        lambda: tensor.tolist(),
        lambda: "x",
        lambda: FakeTensorMode().from_tensor(tensor),
        lambda: torch.quantize_per_tensor(tensor.float(), 1.0, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([tensor.float()]),
        lambda: torch.nn.Parameter(tensor.float()),
        lambda: tensor[(None,) * 6],
        lambda: torch._efficientzerotensor(tensor.shape),
    ])()

seed, isa, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
calls, kept, machine = Calls(seed), [], Machine(2, isa)
with torch.no_grad():
    for n in range(count):
        name, arguments = calls.wrong((emptied, another, viewed, shifted, odd))
        os.pwrite(1, f"{n} {name}".ljust(40).encode(), 0)  # of the one that kills
        try:
            getattr(machine, name)(*made(arguments))
        except (ValueError, IndexError, TypeError):
            pass
"""


@pytest.mark.parametrize(("seed", "isa"), [(1, "portable"), (2, "")])
def test_tensors_without_memory_over_one_another_and_of_odd_kinds(tmp_path, seed, isa):
    with (tmp_path / "last").open("w+") as last:
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", HERE, str(seed), isa, str(CALLS // 3)],
            stdout=last,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        last.seek(0)
        assert run.returncode == 0, f"call {last.read()}: {run.stderr[-2000:]}"


def test_machines_have_threads():
    for threads in (0, -1, -(1 << 31)):
        with pytest.raises(ValueError, match="threads: expected at least 1"):
            cpu.Machine(threads, "")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of the process from /proc")
def test_no_machine_has_more_threads_than_the_system_starts():
    code = """
import os, resource
from ossia.ops._native import Machine
used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), -1))
try:
    Machine(100_000, "")
except ValueError as error:
    print(error)
Machine(3, "")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == "100000 threads are more than the system starts\n"


MEMORY = """
import os, resource
import torch
from ossia.ops import _native

x, weight = torch.randn(300, 500).bfloat16(), torch.randn(400, 500).bfloat16()
machine, matrix, y = _native.Machine(3, ""), _native.Matrix(weight), torch.empty(300, 400)
for _ in range(200):  # each thread gets its thread-local data, without which glibc aborts
    machine.linear(x[:64], matrix, y[:64])
used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
refused = 0
for extra in range(0, 4 << 20, 1 << 16):
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, -1))
    try:
        machine.linear(x, matrix, y)
    except MemoryError:
        refused += 1
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
machine.linear(x, matrix, y)
assert torch.allclose(y, x.float() @ weight.float().T, atol=0.5)
print(refused)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of the process from /proc")
def test_memory_that_there_is_not_is_an_error_in_whichever_thread():
    for _ in range(5):
        run = subprocess.run(
            [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False
        )
        if "thread-local data" not in run.stderr:  # a thread had no work yet, and glibc gave up
            break
    assert (run.returncode, run.stderr) == (0, "")
    assert int(run.stdout) > 0
