"""The number of threads and the precision to train with, by measurement."""

import pytest
import torch

from ossia.train.fastest import choose_threads, compare_precisions, faster
from ossia.train.settings import Precision


@pytest.fixture(autouse=True)
def four_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)


class Machine:
    """Passes whose speed depends on the threads, over batches of at most `batch` tokens in rows of
    `length`.
    """

    def __init__(self, rates, batch=4096, length=1):
        self.rates, self.batch, self.length, self.passes = rates, batch, length, []

    def __call__(self, most):
        length, threads = min(most, self.length), torch.get_num_threads()
        tokens = min(most // length, self.batch // self.length) * length
        self.passes.append((tokens, threads))
        return tokens / self.rates[threads], tokens


@pytest.mark.parametrize(("rates", "chosen"), [({1: 2721, 4: 171}, 1), ({1: 900, 4: 3000}, 4)])
def test_the_faster_is_kept(rates, chosen):
    assert choose_threads(Machine(rates)) == pytest.approx(rates)
    assert torch.get_num_threads() == chosen


def test_a_pass_is_long_enough_to_be_measured_or_a_whole_batch():
    machine = Machine({1: 10_000, 4: 10_000})
    choose_threads(machine)
    assert {tokens for tokens, _ in machine.passes[-6:]} == {1024}  # a tenth of a second
    torch.set_num_threads(4)
    machine = Machine({1: 10_000, 4: 10_000}, batch=300)
    choose_threads(machine)
    assert {tokens for tokens, _ in machine.passes[-6:]} == {300}


@pytest.mark.parametrize("length", [100, 200, 2000])
def test_rows_of_any_length_take_long_enough(length):
    machine = Machine({1: 10_000, 4: 10_000}, batch=32_000, length=length)
    choose_threads(machine)
    (tokens,) = {tokens for tokens, _ in machine.passes[-6:]}
    assert 1000 <= tokens <= 2000  # at least a tenth of a second


def test_nothing_is_measured_where_there_is_no_choice(monkeypatch):
    machine = Machine({1: 1, 4: 1})
    torch.set_num_threads(1)
    assert choose_threads(machine) == {}
    torch.set_num_threads(4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert choose_threads(machine) == {}
    assert machine.passes == []
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("chosen", [Precision.FLOAT32, Precision.BFLOAT16])
def test_both_precisions_are_timed_over_the_same_tokens_in_turns(chosen):
    rates = {precision: 20_000 if precision is chosen else 2_000 for precision in Precision}
    passes = []

    def time_pass(precision):
        def timed(most):
            passes.append((precision, most))
            return most / rates[precision], most

        return timed

    found = compare_precisions(time_pass)
    assert found == pytest.approx({p: rates[p] for p in (Precision.FLOAT32, Precision.BFLOAT16)})
    assert faster(found) is chosen
    # The slower one needs no more tokens for a tenth of a second.
    assert passes[-6:] == [(Precision.FLOAT32, 256), (Precision.BFLOAT16, 256)] * 3


# Of a GPU; of the host, as torch says it and as Python does.
FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    MemoryError(),
]


class Memory:
    """A device on which a pass in each precision fits up to so many tokens."""

    def __init__(self, most, error=FULL[0]):
        self.most, self.error = most, error

    def __call__(self, precision):
        def timed(tokens):
            if tokens > self.most[precision]:
                raise self.error
            return 1e-6 * tokens, min(tokens, 4096)

        return timed


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("fits", [Precision.FLOAT32, Precision.BFLOAT16])
@pytest.mark.parametrize("most", [0, 1000])
def test_a_precision_that_runs_out_of_memory_loses(fits, most, error):
    limits = dict.fromkeys(Precision, most) | {fits: 10**9}
    found = compare_precisions(Memory(limits, error))
    assert faster(found) is fits
    both = (Precision.FLOAT32, Precision.BFLOAT16)
    assert found == pytest.approx({p: 1e6 if p is fits else 0 for p in both})


def test_both_precisions_may_run_out_of_memory():
    with pytest.raises(torch.OutOfMemoryError, match="neither"):
        compare_precisions(Memory(dict.fromkeys(Precision, 1000)))


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_threads_stay_where_a_pass_runs_out_of_memory(error):
    memory = Memory(dict.fromkeys(Precision, 1000), error)
    assert choose_threads(memory(Precision.FLOAT32)) == {}
    assert torch.get_num_threads() == 4


def test_any_other_error_is_raised():
    memory = Memory(dict.fromkeys(Precision, 0), RuntimeError("a shape does not fit"))
    with pytest.raises(RuntimeError, match="shape"):
        choose_threads(memory(Precision.FLOAT32))
